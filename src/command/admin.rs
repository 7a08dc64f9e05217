//! `stats`, `images`, `purge` and `pin`: what the admin port of a running proxy says and does.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::config::Config;
use crate::doctor::ask::Proxy;
use crate::doctor::own_admin;
use crate::key::{Image, Repository};

/// Rows asked for at a time: so many as the admin port gives.
const PAGE: usize = 1000;

/// What to ask for.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what the running proxy has served and stored since its start.
    Stats {
        /// Whom to ask.
        #[command(flatten)]
        to: To,
        /// Again every so many seconds, 2 where none are said, until stopped.
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
              value_parser = clap::value_parser!(u64).range(1..=86400))]
        watch: Option<u64>,
        /// As the admin port has it, a line each time.
        #[arg(long)]
        json: bool,
    },
    /// List the images of which something is stored.
    Images {
        /// Whom to ask.
        #[command(flatten)]
        to: To,
        /// As the admin port has it.
        #[arg(long)]
        json: bool,
        /// What comes first: the greatest, or the first name.
        #[arg(long, value_enum, default_value = "last_use")]
        sort: Sort,
    },
    /// Remove images or all entries from the cache, but nothing that is pinned.
    ///
    /// Asks before it does so.
    Purge {
        /// Whom to ask.
        #[command(flatten)]
        to: To,
        /// What to remove.
        #[command(flatten)]
        what: What,
        /// Only say what would be removed.
        #[arg(long)]
        dry_run: bool,
        /// Don't ask.
        #[arg(long)]
        yes: bool,
    },
    /// Keep an image from eviction and purges, whether or not it is stored yet.
    Pin {
        /// Whom to ask.
        #[command(flatten)]
        to: To,
        /// Let it go again.
        #[arg(long, requires = "image")]
        remove: bool,
        /// List what is pinned.
        #[arg(long, conflicts_with_all = ["image", "remove"])]
        list: bool,
        /// The image, such as alpine or ghcr.io/org/app:1.2.
        #[arg(required_unless_present = "list", value_name = "IMAGE", value_parser = Image::parse)]
        image: Option<Image>,
    },
}

// The token is no argument: others on the machine see those.
/// Whom to ask.
#[derive(Debug, Args)]
pub struct To {
    /// The admin port; else the configuration's. The token is API_TOKEN's, else the
    /// configuration's, which goes to its own admin port and to this machine alone.
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
}

/// How images are sorted.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Sort {
    /// Bytes of all parts.
    Size,
    /// When it was used last.
    LastUse,
    /// Answers from the cache.
    Hits,
    /// Its name.
    Image,
}

/// What to remove.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct What {
    /// One image; parts that another image has, too, stay.
    #[arg(long, value_name = "IMAGE", value_parser = Image::parse)]
    image: Option<Image>,
    /// All images of one repository.
    #[arg(long, value_parser = Repository::parse)]
    repository: Option<Repository>,
    /// What was not used for so long, such as 7d or 12h.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Everything that is not pinned.
    #[arg(long)]
    all: bool,
}

impl What {
    /// A query, with this further field.
    fn path(&self, more: &str) -> String {
        let field = match (&self.image, &self.repository, self.older_than) {
            (Some(image), ..) => format!("image={}", encode(&image.to_string())),
            (_, Some(repository), _) => format!("repository={}", encode(&repository.to_string())),
            (.., Some(age)) => format!("older_than={}ms", age.as_millis()),
            _ => String::new(),
        };
        format!("/api/cache?{field}&{more}")
    }
}

/// Why a command ends early.
#[derive(Debug)]
pub enum Failure {
    /// What was asked for can't be meant.
    Usage(String),
    /// It did not come about.
    Failed(String),
    /// Nobody reads on, which is no failure.
    Gone,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::Gone,
            _ => Failure::Failed(format!("standard output: {error}")),
        }
    }
}

/// Asks, and writes what is answered.
///
/// # Errors
/// One line that says why it did not come about.
pub fn run(config: &Config, command: &Command, out: &mut dyn Write) -> Result<(), Failure> {
    match command {
        Command::Stats { to, watch, json } => stats(&Admin::new(config, to)?, *watch, *json, out),
        Command::Images { to, json, sort } => images(&Admin::new(config, to)?, *json, *sort, out),
        Command::Purge { to, what, dry_run, yes } => {
            if !dry_run && !yes && !io::stdin().is_terminal() {
                let why = "nobody to ask, as standard input is no terminal: add --yes or --dry-run";
                return Err(Failure::Usage(why.to_owned()));
            }
            purge(&Admin::new(config, to)?, what, (*dry_run, *yes), out)
        }
        Command::Pin { to, remove, image, .. } => {
            let admin = Admin::new(config, to)?;
            let Some(image) = image else { return pins(&admin, out) };
            let (method, done) =
                if *remove { ("DELETE", "no longer pinned") } else { ("POST", "pinned") };
            admin.ask(method, &format!("/api/cache/pins?image={}", encode(&image.to_string())))?;
            Ok(writeln!(out, "{image}: {done}")?)
        }
    }
}

struct Admin {
    at: Proxy,
    /// The whole line, or nothing.
    token: String,
    /// Whether there is a token in the configuration that is not this one's.
    withheld: bool,
}

impl Admin {
    fn new(config: &Config, to: &To) -> Result<Admin, Failure> {
        let at = match &to.admin {
            None => own_admin(config).map_err(Failure::Usage)?,
            Some(url) => Proxy::parse(url)
                .ok_or_else(|| Failure::Usage("--admin wants http://HOST:PORT".to_owned()))?,
        };
        let given = std::env::var("API_TOKEN").ok().filter(|token| !token.is_empty());
        let known = config.proxy.api_token.as_ref().map(|token| token.expose());
        let withheld = known.is_some() && given.is_none() && !is_for(config, &at);
        let token = given.as_deref().or(known.filter(|_| !withheld));
        if token.is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(Failure::Usage("API_TOKEN is visible ASCII without blanks".to_owned()));
        }
        let line = |token| format!("Authorization: Bearer {token}\r\n");
        Ok(Admin { at, token: token.map(line).unwrap_or_default(), withheld })
    }

    fn ask(&self, method: &str, path: &str) -> Result<Value, Failure> {
        let at = &self.at;
        let answer = at.own_by(method, path, &self.token).map_err(|error| {
            Failure::Failed(format!(
                "{at} does not answer: {error}; is the proxy running? its admin port is \
                 proxy.api_port, or name it by --admin"
            ))
        })?;
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        match answer.status() {
            200..=299 if body.is_object() => Ok(body),
            401 if self.withheld => Err(Failure::Failed(format!(
                "{at} wants a token, and proxy.api_token of the configuration is not sent to \
                 other machines: set API_TOKEN to the one that is wanted there"
            ))),
            401 => Err(Failure::Failed(format!(
                "{at} wants the token: set API_TOKEN to its proxy.api_token"
            ))),
            status => {
                let why = body["errors"][0]["message"].as_str();
                let why = why.unwrap_or("is it the admin port of a discobot-proxy?");
                Err(Failure::Failed(format!("{at} answers {status}: {}", shown(why))))
            }
        }
    }
}

/// Whether the configuration's token is for this place: its own admin port, under any of the names
/// that has, or this machine. Anybody else who is named by mistake, or by somebody's script, would
/// have it for good.
fn is_for(config: &Config, at: &Proxy) -> bool {
    let (proxy, authority) = (&config.proxy, at.authority());
    let named = |name: &String| format!("{name}:{}", proxy.api_port) == authority;
    at.is_this_machine()
        || own_admin(config).is_ok_and(|own| own.authority() == authority)
        || proxy.api_hosts.iter().any(named)
}

fn stats(
    admin: &Admin,
    watch: Option<u64>,
    json: bool,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    loop {
        let stats = admin.ask("GET", "/api/cache/stats")?;
        if json {
            writeln!(out, "{stats}")?;
        } else {
            if watch.is_some() && io::stdout().is_terminal() {
                // In the place of what was shown before.
                write!(out, "\x1b[H\x1b[J")?;
            }
            write!(out, "{}", table(&figures(&stats)))?;
        }
        out.flush()?;
        let Some(seconds) = watch else { return Ok(()) };
        std::thread::sleep(Duration::from_secs(seconds));
    }
}

fn figures(stats: &Value) -> Vec<Vec<String>> {
    let number = |name: &str| stats[name].as_u64().unwrap_or_default();
    let share = |value: f64| format!("{value:.1}%");
    let rows = [
        ("hits", number("hits").to_string()),
        ("misses", number("misses").to_string()),
        ("of these joined", number("coalesced").to_string()),
        ("hit rate", share(stats["hit_rate"].as_f64().unwrap_or_default() * 100.0)),
        ("saved", size(&stats["bytes_saved"])),
        ("saved of all", share(stats["bytes_saved_percent"].as_f64().unwrap_or_default())),
        ("stored", size(&stats["current_size"])),
        ("entries", number("entries").to_string()),
        ("running fills", number("fills").to_string()),
        ("evictions", number("evictions").to_string()),
    ];
    rows.map(|(name, value)| vec![name.to_owned(), value]).into()
}

fn images(admin: &Admin, json: bool, sort: Sort, out: &mut dyn Write) -> Result<(), Failure> {
    let sort = match sort {
        Sort::Size => "size",
        Sort::LastUse => "last_use",
        Sort::Hits => "hits",
        Sort::Image => "image&order=asc",
    };
    let mut images = Vec::new();
    for page in 1.. {
        let path = format!("/api/cache/images?limit={PAGE}&page={page}&sort={sort}");
        let rows = admin.ask("GET", &path)?["images"].take();
        let rows = rows.as_array().map_or(&[][..], Vec::as_slice);
        images.extend_from_slice(rows);
        if rows.len() < PAGE {
            break;
        }
    }
    if json {
        let total = images.len();
        return Ok(writeln!(out, "{}", json!({"images": images, "total": total}))?);
    }
    let heads = ["IMAGE", "SIZE", "STORED", "SHARED", "HITS", "LAST USE", "PINNED"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(images.iter().map(|image| {
        let pinned = if image["pinned"] == true { "yes" } else { "-" };
        let hits = image["hits"].as_u64().unwrap_or_default().to_string();
        let [all, stored, shared] = ["size", "stored", "shared"].map(|name| size(&image[name]));
        vec![name(image), all, stored, shared, hits, text(&image["last_use"]), pinned.to_owned()]
    }));
    Ok(write!(out, "{}", table(&rows))?)
}

/// As it can be given to `purge` and `pin` where it has one tag or none.
fn name(image: &Value) -> String {
    let tags: Vec<String> = image["tags"].as_array().into_iter().flatten().map(text).collect();
    match tags.is_empty() {
        true => format!("{}@{}", text(&image["image"]), text(&image["digest"])),
        false => format!("{}:{}", text(&image["image"]), tags.join(",")),
    }
}

fn purge(
    admin: &Admin,
    what: &What,
    (dry_run, yes): (bool, bool),
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let count = |done: &Value| {
        let [entries, pinned] =
            ["removed", "pinned"].map(|name| done[name].as_u64().unwrap_or_default());
        let stay = match pinned {
            0 => String::new(),
            _ => format!(" ({pinned} pinned entries stay)"),
        };
        format!("{entries} entries of {}{stay}", size(&done["freed"]))
    };
    if dry_run || !yes {
        let dry = admin.ask("DELETE", &what.path("dry_run=1"))?;
        if dry_run {
            return Ok(writeln!(out, "would remove {}", count(&dry))?);
        }
        write!(out, "remove {}? [y/N] ", count(&dry))?;
        out.flush()?;
        let mut said = String::new();
        io::stdin()
            .read_line(&mut said)
            .map_err(|error| Failure::Failed(format!("standard input: {error}")))?;
        if !matches!(said.trim(), "y" | "Y" | "yes") {
            return Err(Failure::Failed("nothing was removed".to_owned()));
        }
    }
    let done = admin.ask("DELETE", &what.path(""))?;
    Ok(writeln!(out, "removed {}", count(&done))?)
}

fn pins(admin: &Admin, out: &mut dyn Write) -> Result<(), Failure> {
    let pins = admin.ask("GET", "/api/cache/pins")?;
    let mut rows = vec![["IMAGE", "STORED", "SINCE"].map(str::to_owned).to_vec()];
    rows.extend(
        pins["pins"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|pin| vec![text(&pin["image"]), size(&pin["bytes"]), text(&pin["since"])]),
    );
    Ok(write!(out, "{}", table(&rows))?)
}

fn size(bytes: &Value) -> String {
    ByteSize(bytes.as_u64().unwrap_or_default()).to_string()
}

fn text(value: &Value) -> String {
    shown(value.as_str().unwrap_or("-"))
}

/// Without what a terminal would obey.
fn shown(text: &str) -> String {
    text.replace(char::is_control, "?")
}

/// Columns as wide as they need be, all but the first one flush right.
fn table(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in rows {
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            match column {
                0 => out.push_str(&format!("{cell:<width$}")),
                _ => out.push_str(&format!("  {cell:>width$}")),
            }
        }
        out.push('\n');
    }
    out
}

/// What a query may hold as it is stays: names are easier to read so.
fn encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => out.push(byte.into()),
            b'-' | b'.' | b'_' | b'/' | b':' | b'@' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
