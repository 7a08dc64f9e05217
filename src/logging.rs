//! Log output: text or JSON, to standard output or to a file that is put aside when it is large
//! and can be reopened. In the journal, a line has the journal's own time and priority.
//!
//! Lines are written by a thread of their own through a bounded queue; what does not fit is dropped
//! rather than waited for. What is queued is written together.

use std::cell::RefCell;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{self, FormatEvent, FormatFields, Writer};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Format, Level, Logging};
use crate::sys;

/// Lines that may wait to be written; what comes when there are so many is lost, and no request
/// waits for the log. Room for them is made at the start, 32 bytes for each.
const LINES_WAITING: usize = 16 * 1024;

/// Keeps log output going; dropped, what is queued is written.
pub struct LogOutput {
    level: Arc<AtomicU8>,
    reopen: Arc<AtomicBool>,
    _guard: WorkerGuard,
}

impl LogOutput {
    /// Sets log output up for the whole process. The error names the file.
    pub fn start(config: &Logging) -> io::Result<LogOutput> {
        let reopen = Arc::new(AtomicBool::new(false));
        let (writer, guard) = match &config.file {
            None => queued(io::stdout()),
            Some(path) => {
                let file = LogFile::open(config, path, Arc::clone(&reopen))?;
                queued(file)
            }
        };
        let colour = config.file.is_none() && io::stdout().is_terminal();
        let level = Arc::new(AtomicU8::new(config.level as u8));
        subscribe(config, Gate(Arc::clone(&level)), writer, colour);
        Ok(LogOutput { level, reopen, _guard: guard })
    }

    /// Sets another level from then on.
    pub fn set_level(&self) -> impl Fn(Level) + Send + Sync + 'static {
        let shared = Arc::clone(&self.level);
        move |level| {
            shared.store(level as u8, Ordering::Release);
            tracing::callsite::rebuild_interest_cache();
        }
    }

    /// Has the file opened anew at the next line: the old one has been moved away.
    pub fn reopen(&self) {
        self.reopen.store(true, Ordering::Release);
    }
}

/// Writes on a thread of its own what it is given.
fn queued(output: impl io::Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    let output = Output { lines: BufWriter::new(output), stands_back: false };
    NonBlockingBuilder::default().buffered_lines_limit(LINES_WAITING).finish(output)
}

/// What the thread that writes the log has. It takes no core from a worker for a single line: what
/// has come until it has its turn is written together.
struct Output<W: Write> {
    lines: BufWriter<W>,
    stands_back: bool,
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if !std::mem::replace(&mut self.stands_back, true) {
            // Where it fails, lines are written sooner, and requests a little later.
            let _ = sys::process::stand_back();
        }
        self.lines.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.lines.flush()
    }
}

fn subscribe(config: &Logging, gate: Gate, writer: NonBlocking, colour: bool) {
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colour);
    let registry = tracing_subscriber::registry().with(gate);
    match config.format {
        Format::Text if config.file.is_none() && is_journal() => {
            let lines = lines.without_time().with_level(false);
            registry.with(lines.map_event_format(|line| Lines::new(line, Style::Journal))).init();
        }
        Format::Text => {
            registry.with(lines.map_event_format(|line| Lines::new(line, Style::Text))).init();
        }
        Format::Json => {
            let lines = lines.json().flatten_event(true);
            registry.with(lines.map_event_format(|line| Lines::new(line, Style::Json))).init();
        }
    }
}

/// Lets through what is severe enough, by a level that may change. Whether a line is written is
/// settled once for each place that writes one, until the level changes: as long as it stays,
/// nothing is asked, and no lock taken as `tracing_subscriber::reload` does twice a line.
struct Gate(Arc<AtomicU8>);

impl Gate {
    fn level(&self) -> LevelFilter {
        match self.0.load(Ordering::Acquire) {
            level if level == Level::Error as u8 => LevelFilter::ERROR,
            level if level == Level::Warn as u8 => LevelFilter::WARN,
            level if level == Level::Info as u8 => LevelFilter::INFO,
            level if level == Level::Debug as u8 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        }
    }
}

impl<S: Subscriber> Layer<S> for Gate {
    fn register_callsite(&self, place: &'static Metadata<'static>) -> Interest {
        if *place.level() <= self.level() { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, place: &Metadata<'_>, _: Context<'_, S>) -> bool {
        *place.level() <= self.level()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level())
    }
}

/// Whether standard output leads to the journal (systemd.exec(5), `JOURNAL_STREAM`).
fn is_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM");
    let output = io::stdout().as_fd().try_clone_to_owned();
    let output = output.and_then(|output| File::from(output).metadata());
    matches!((stream, output), (Ok(stream), Ok(output))
        if stream == format!("{}:{}", output.dev(), output.ino()))
}

/// Lines of the access log show their target; that of all others is of no use to who reads them.
struct Lines<F, T> {
    access: format::Format<F, T>,
    other: format::Format<F, T>,
    style: Style,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Json,
    Text,
    /// Text that begins with its priority (sd-daemon(3)).
    Journal,
}

impl<F: Clone, T: Clone> Lines<F, T> {
    fn new(line: format::Format<F, T>, style: Style) -> Lines<F, T> {
        Lines { access: line.clone().with_target(true), other: line.with_target(false), style }
    }
}

impl<S, N, F, T> FormatEvent<S, N> for Lines<F, T>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    format::Format<F, T>: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        if self.style == Style::Journal {
            let priority = match *metadata.level() {
                tracing::Level::ERROR => 3,
                tracing::Level::WARN => 4,
                tracing::Level::INFO => 6,
                tracing::Level::DEBUG | tracing::Level::TRACE => 7,
            };
            write!(writer, "<{priority}>")?;
        }
        match (metadata.target(), self.style) {
            ("access", Style::Json) => self.access.format_event(context, writer, event),
            ("access", style) => write_access(writer, event, style == Style::Text),
            _ => self.other.format_event(context, writer, event),
        }
    }
}

/// A line of the access log in text: each request pays for one, and this costs a third of what is
/// done for lines in general. Its values are checked: none has a blank or a control character.
fn write_access(mut writer: Writer<'_>, event: &Event<'_>, with_time: bool) -> fmt::Result {
    if with_time {
        write_time(&mut writer, SystemTime::now())?;
        match *event.metadata().level() {
            tracing::Level::INFO => writer.write_str("  INFO ")?,
            level => write!(writer, " {level:>5} ")?,
        }
    }
    writer.write_str("access:")?;
    let mut fields = Fields { writer, result: Ok(()) };
    event.record(&mut fields);
    fields.result?;
    writeln!(fields.writer)
}

/// As it stands before all other lines (RFC 3339, to the microsecond). What is the same for a
/// second is kept for it.
fn write_time(writer: &mut Writer<'_>, now: SystemTime) -> fmt::Result {
    thread_local! {
        static SECOND: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
    }
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    SECOND.with_borrow_mut(|(second, text)| {
        if text.is_empty() || *second != since.as_secs() {
            *second = since.as_secs();
            *text = humantime::format_rfc3339_seconds(now).to_string();
            text.pop();
        }
        writer.write_str(text)
    })?;
    write!(writer, ".{:06}Z", since.subsec_micros())
}

struct Fields<'a> {
    writer: Writer<'a>,
    result: fmt::Result,
}

impl Fields<'_> {
    fn write(&mut self, field: &Field, value: impl FnOnce(&mut Writer<'_>) -> fmt::Result) {
        let writer = &mut self.writer;
        let mut begin = || {
            writer.write_str(" ")?;
            if field.name() != "message" {
                writer.write_str(field.name())?;
                writer.write_str("=")?;
            }
            Ok(())
        };
        self.result = self.result.and_then(|()| begin()).and_then(|()| value(writer));
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.write(field, |writer| writer.write_str(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.write(field, |writer| write!(writer, "{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.write(field, |writer| write!(writer, "{value:?}"));
    }
}

struct LogFile {
    path: PathBuf,
    file: File,
    size: u64,
    max_size: u64,
    keep: u32,
    reopen: Arc<AtomicBool>,
}

impl LogFile {
    fn open(config: &Logging, path: &Path, reopen: Arc<AtomicBool>) -> io::Result<LogFile> {
        let file = open(path)?;
        let size = file.metadata()?.len();
        let (path, max_size, keep) = (path.to_owned(), config.max_size, config.keep);
        Ok(LogFile { path, file, size, max_size, keep, reopen })
    }

    /// The name of the `n`th file put aside, the youngest being the first.
    fn old(&self, n: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{n}"));
        name.into()
    }

    fn put_aside(&self) -> io::Result<()> {
        for n in (1..self.keep).rev() {
            match fs::rename(self.old(n), self.old(n + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, self.old(1))
    }

    fn begin_anew(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        self.size = self.file.metadata()?.len();
        Ok(())
    }
}

impl Write for LogFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let is_full = self.max_size > 0
            && self.size > 0
            && self.size.saturating_add(buf.len() as u64) > self.max_size;
        let moved = self.reopen.swap(false, Ordering::AcqRel);
        if is_full || moved {
            let aside = if is_full && !moved { self.put_aside() } else { Ok(()) };
            if let Err(error) = aside.and_then(|()| self.begin_anew()) {
                // On the way to the log itself: standard error is what is left.
                let _ = writeln!(io::stderr(), "the log file stays the old one: {error}");
                // Not to be tried again at each line.
                self.size = 0;
            }
        }
        let written = self.file.write(buf)?;
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_time_of_a_line_is_right_within_a_second_and_in_the_next() {
        let written = |micros| {
            let mut text = String::new();
            let at = UNIX_EPOCH + Duration::from_micros(micros);
            write_time(&mut Writer::new(&mut text), at).unwrap();
            text
        };
        for micros in [0, 7, 999_999, 1_000_000, 951_782_400_000_001, 951_782_399_999_999] {
            let at = UNIX_EPOCH + Duration::from_micros(micros);
            assert_eq!(written(micros), humantime::format_rfc3339_micros(at).to_string());
        }
    }
}
