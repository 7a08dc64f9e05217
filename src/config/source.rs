//! Where the configuration of this process comes from, to be read again.

use std::path::PathBuf;

use super::{Config, ConfigError, read};

/// The file that the command line names, if it does, and this process's environment.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// What the command line says.
    pub file: Option<PathBuf>,
}

impl Source {
    /// Reads it.
    ///
    /// # Errors
    /// As for [`Config::load`].
    pub fn load(&self) -> Result<Config, ConfigError> {
        Config::load(self.file.as_deref(), variable)
    }

    /// The file that is read where it exists.
    pub fn path(&self) -> PathBuf {
        read::find(self.file.as_deref(), &|name| variable(name).filter(|text| !text.is_empty())).0
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
