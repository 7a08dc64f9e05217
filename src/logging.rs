//! Log output: text or JSON, to standard output or to a file that can be reopened.
//!
//! Lines are written by a thread of their own through a bounded queue; what does not fit is dropped
//! rather than waited for.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{NonBlocking, WorkerGuard};

use crate::config::{Format, Level, Logging};

/// Keeps log output going; dropped, what is queued is written.
pub struct LogOutput {
    reopen: Arc<AtomicBool>,
    _guard: WorkerGuard,
}

impl LogOutput {
    /// Sets log output up for the whole process. The error names the file.
    pub fn start(config: &Logging) -> io::Result<LogOutput> {
        let reopen = Arc::new(AtomicBool::new(false));
        let (writer, guard) = match &config.file {
            None => tracing_appender::non_blocking(io::stdout()),
            Some(path) => {
                let file = open(path)?;
                let (path, reopen) = (path.clone(), Arc::clone(&reopen));
                tracing_appender::non_blocking(LogFile { path, file, reopen })
            }
        };
        let colour = config.file.is_none() && io::stdout().is_terminal();
        subscribe(config, writer, colour);
        Ok(LogOutput { reopen, _guard: guard })
    }

    /// Has the file opened anew at the next line: the old one has been moved away.
    pub fn reopen(&self) {
        self.reopen.store(true, Ordering::Release);
    }
}

fn subscribe(config: &Logging, writer: NonBlocking, colour: bool) {
    let level = match config.level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(writer)
        .with_target(false)
        .with_ansi(colour);
    match config.format {
        Format::Text => builder.init(),
        Format::Json => builder.json().flatten_event(true).init(),
    }
}

struct LogFile {
    path: PathBuf,
    file: File,
    reopen: Arc<AtomicBool>,
}

impl Write for LogFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.reopen.swap(false, Ordering::AcqRel) {
            match open(&self.path) {
                Ok(file) => self.file = file,
                // On the way to the log itself: standard error is what is left.
                Err(error) => {
                    let _ = writeln!(io::stderr(), "the log file stays the old one: {error}");
                }
            }
        }
        self.file.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}
