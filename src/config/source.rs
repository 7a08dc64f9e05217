//! Where the configuration of this process comes from, to be read again.

use std::path::PathBuf;

use super::error::Place;
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

    /// Reads it again. A file that is empty or gone, where it was not `before`, is no request for
    /// all the defaults: a full disk leaves such files, and what was closed would be open.
    ///
    /// # Errors
    /// As for [`Config::load`], and for such a file.
    pub fn reload(&self, before: &Config) -> Result<Config, ConfigError> {
        let nothing = read::parse("", "", &set)?;
        let config = self.load()?;
        if config == nothing && *before != nothing {
            let place = Place::File(self.path().to_string_lossy().into_owned());
            let wanted = "a key with a value; all defaults take a restart";
            return Err(ConfigError::new(place, "", "nothing that is set", wanted));
        }
        Ok(config)
    }

    /// The file that is read where it exists.
    pub fn path(&self) -> PathBuf {
        read::find(self.file.as_deref(), &set).0
    }
}

/// A variable that says something.
fn set(name: &str) -> Option<String> {
    variable(name).filter(|text| !text.is_empty())
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
