//! Whom to be at a registry: the logins that Docker, podman and their like have left on this
//! machine. They are only read.
//!
//! A *login* is a user with a password, or an identity token, and the file that it came from. It is
//! shown nowhere; the file's name is.

mod file;
mod helper;

use std::env;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use self::file::File;
use crate::config::Secret;
use crate::key::Repository;

/// Whom to be, and who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// What to show.
    pub shows: Shows,
    /// The file, and the helper that it names, for people.
    pub source: String,
}

/// What a login has to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shows {
    /// User and password, as `Authorization` has them (RFC 7617, section 2).
    Password(Secret),
    /// A token that stands for the user at the registry's token service, which gives others for it
    /// (RFC 6749, section 6).
    Identity(Secret),
}

/// The files that hold logins.
pub struct Logins {
    files: Vec<PathBuf>,
    helpers: helper::Helpers,
}

impl Logins {
    /// Those of this user: `$REGISTRY_AUTH_FILE` first, where that is set, then Docker's, then
    /// those of podman, buildah and skopeo (containers-auth.json(5)).
    pub fn of_user() -> Logins {
        let named = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let folder = |name: &str| named(name).map(PathBuf::from);
        let home = env::home_dir();
        let below = |path: &str| home.as_ref().map(|home| home.join(path));
        let containers = |folder: PathBuf| folder.join("containers/auth.json");
        let run = folder("XDG_RUNTIME_DIR").map(containers).or_else(|| {
            let own = Path::new("/proc/self").metadata().ok()?.uid();
            Some(format!("/run/containers/{own}/auth.json").into())
        });
        let files = [
            folder("REGISTRY_AUTH_FILE"),
            folder("DOCKER_CONFIG").or_else(|| below(".docker")).map(|at| at.join("config.json")),
            run,
            folder("XDG_CONFIG_HOME").or_else(|| below(".config")).map(containers),
        ];
        Logins::new(files.into_iter().flatten().collect())
    }

    fn new(files: Vec<PathBuf>) -> Logins {
        Logins { files, helpers: helper::Helpers::default() }
    }

    /// The first login for this repository.
    ///
    /// # Errors
    /// A file or a helper that can't be understood, in one line.
    pub fn find(&self, repository: &Repository) -> Result<Option<Login>, String> {
        for path in &self.files {
            let Some(file) = File::read(path)? else { continue };
            if let Some(login) = file.find(repository, &self.helpers)? {
                return Ok(Some(login));
            }
        }
        Ok(None)
    }
}

/// Where logins were looked for.
impl fmt::Display for Logins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, path) in self.files.iter().enumerate() {
            write!(f, "{}{}", if n == 0 { "" } else { ", " }, path.display())?;
        }
        Ok(())
    }
}
