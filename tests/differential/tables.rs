//! Messages that are in order, and what nginx does otherwise than we do, with the reason.

/// Requests that RFC 9112 allows, usual and unusual ones.
pub const VALID: &[(&str, &str)] = &[
    ("GET", "GET {t} HTTP/1.1\r\nHost: {h}\r\n\r\n"),
    ("GET that closes", "GET {t} HTTP/1.1\r\nHost: {h}\r\nConnection: close\r\n\r\n"),
    ("GET with a body", "GET {t} HTTP/1.1\r\nHost: {h}\r\nContent-Length: 5\r\n\r\nhello"),
    ("GET of length 0", "GET {t} HTTP/1.1\r\nHost: {h}\r\nContent-Length: 0\r\n\r\n"),
    ("POST", "POST {t} HTTP/1.1\r\nHost: {h}\r\nContent-Length: 5\r\n\r\nhello"),
    ("POST of nothing", "POST {t} HTTP/1.1\r\nHost: {h}\r\n\r\n"),
    ("length with zeros", "POST {t} HTTP/1.1\r\nHost: {h}\r\nContent-Length: 0005\r\n\r\nhello"),
    ("length in blanks", "POST {t} HTTP/1.1\r\nHost: {h}\r\nContent-Length: \t5 \t\r\n\r\nhello"),
    ("HTTP/1.0", "GET {t} HTTP/1.0\r\nHost: {h}\r\n\r\n"),
    ("HTTP/1.0 without Host", "GET {t} HTTP/1.0\r\n\r\n"),
    ("HTTP/1.0 kept alive", "GET {t} HTTP/1.0\r\nHost: {h}\r\nConnection: keep-alive\r\n\r\n"),
    ("HTTP/1.0 with a body", "POST {t} HTTP/1.0\r\nHost: {h}\r\nContent-Length: 5\r\n\r\nhello"),
    ("one empty line first", "\r\nGET {t} HTTP/1.1\r\nHost: {h}\r\n\r\n"),
    ("value beyond ASCII", "GET {t} HTTP/1.1\r\nHost: {h}\r\nX: \u{e9}\r\n\r\n"),
    ("value with a tab", "GET {t} HTTP/1.1\r\nHost: {h}\r\nX: a\tb\r\n\r\n"),
    ("value empty", "GET {t} HTTP/1.1\r\nHost: {h}\r\nX:\r\nY: \r\n\r\n"),
    ("no blank behind the colon", "GET {t} HTTP/1.1\r\nHost:{h}\r\nX:y\r\n\r\n"),
    ("name with an underscore", "GET {t} HTTP/1.1\r\nHost: {h}\r\nContent_Length: 5\r\n\r\n"),
    ("name of all token characters", "GET {t} HTTP/1.1\r\nHost: {h}\r\n!#$%&'*+-.^_`|~: a\r\n\r\n"),
    ("method in lower case", "get {t} HTTP/1.1\r\nHost: {h}\r\n\r\n"),
    ("method of one's own", "PURGE-ALL {t} HTTP/1.1\r\nHost: {h}\r\n\r\n"),
    ("method with a digit", "M2 {t} HTTP/1.1\r\nHost: {h}\r\n\r\n"),
    ("OPTIONS", "OPTIONS {t} HTTP/1.1\r\nHost: {h}\r\n\r\n"),
    ("TRACE", "TRACE {t} HTTP/1.1\r\nHost: {h}\r\n\r\n"),
    ("Host in upper case", "GET {t} HTTP/1.1\r\nHOST: {H}\r\n\r\n"),
    ("scheme in upper case", "GET HTTP://{h}/row HTTP/1.1\r\nHost: {h}\r\n\r\n"),
    ("no path", "GET http://{h} HTTP/1.1\r\nHost: {h}\r\n\r\n"),
    ("no path but a query", "GET http://{h}?x HTTP/1.1\r\nHost: {h}\r\n\r\n"),
    ("path with two slashes", "GET http://{h}//row HTTP/1.1\r\nHost: {h}\r\n\r\n"),
    ("path with dots", "GET http://{h}/x/../row HTTP/1.1\r\nHost: {h}\r\n\r\n"),
    ("path with dots beyond the root", "GET http://{h}/../row HTTP/1.1\r\nHost: {h}\r\n\r\n"),
    ("path with %2e and %2f", "GET http://{h}/%2e%2e%2frow HTTP/1.1\r\nHost: {h}\r\n\r\n"),
    ("path with %00", "GET http://{h}/row%00 HTTP/1.1\r\nHost: {h}\r\n\r\n"),
    ("path with a broken escape", "GET http://{h}/row%zz HTTP/1.1\r\nHost: {h}\r\n\r\n"),
    ("path with braces", "GET http://{h}/row{|}^`\\<> HTTP/1.1\r\nHost: {h}\r\n\r\n"),
    (
        "chunks",
        "POST {t} HTTP/1.1\r\nHost: {h}\r\nTransfer-Encoding: chunked\r\n\r\n\
                5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "chunks in other case",
        "POST {t} HTTP/1.1\r\nHost: {h}\r\ntransfer-encoding:  Chunked\t\r\n\r\n\
                00a\r\nhellohello\r\nA\r\nhellohello\r\n000\r\n\r\n",
    ),
    (
        "chunks of a GET",
        "GET {t} HTTP/1.1\r\nHost: {h}\r\nTransfer-Encoding: chunked\r\n\r\n\
                5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "chunk extensions",
        "POST {t} HTTP/1.1\r\nHost: {h}\r\nTransfer-Encoding: chunked\r\n\r\n\
                5;a=b;c=\"d;e\"\r\nhello\r\n0;f\r\n\r\n",
    ),
    (
        "chunk extension behind a blank",
        "POST {t} HTTP/1.1\r\nHost: {h}\r\nTransfer-Encoding: chunked\r\n\r\n\
                5 ; a = b\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "trailers",
        "POST {t} HTTP/1.1\r\nHost: {h}\r\nTransfer-Encoding: chunked\r\n\r\n\
                5\r\nhello\r\n0\r\nX: y\r\n\r\n",
    ),
    (
        "Expect: 100-continue",
        "POST {t} HTTP/1.1\r\nHost: {h}\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
    ),
    (
        "Expect of one's own",
        "POST {t} HTTP/1.1\r\nHost: {h}\r\nContent-Length: 5\r\nExpect: more\r\n\r\nhello",
    ),
    (
        "Connection that names the length",
        "POST {t} HTTP/1.1\r\nHost: {h}\r\nConnection: Content-Length, Host\r\n\
         Content-Length: 5\r\n\r\nhello",
    ),
    ("TE", "GET {t} HTTP/1.1\r\nHost: {h}\r\nTE: chunked\r\n\r\n"),
    ("Keep-Alive", "GET {t} HTTP/1.1\r\nHost: {h}\r\nKeep-Alive: timeout=5\r\n\r\n"),
    ("Upgrade", "GET {t} HTTP/1.1\r\nHost: {h}\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"),
    (
        "Connection: close in a list",
        "GET {t} HTTP/1.1\r\nHost: {h}\r\nConnection: x, close\r\n\r\n",
    ),
];

/// Rows that end one way here and another way in nginx, and why.
pub struct Difference {
    pub why: &'static str,
    pub ours: &'static str,
    pub theirs: &'static str,
    pub rows: &'static [&'static str],
}

const REFUSED: &str = "4xx, 0 upstream";
const TAKEN: &str = "2xx 2xx, 2 upstream";

/// Of requests.
pub const REQUESTS: &[Difference] = &[
    Difference {
        why: "both refuse: 501 is ours for a list of codings that could be meant, 400 for one that \
              contradicts itself or its message; nginx compares with `chunked` and says 501",
        ours: REFUSED,
        theirs: "5xx, 0 upstream",
        rows: &[
            "unknown coding and length",
            "coding twice in a list",
            "coding chunked first",
            "coding chunked and a word",
            "coding with a parameter",
            "coding quoted",
            "coding empty",
            "coding behind a comma",
            "coding before a comma",
            "coding behind a vertical tab",
            "coding behind a form feed",
            "coding behind a no-break space",
        ],
    },
    Difference {
        why: "both refuse: nginx for the second line, we for the coding in the first",
        ours: "5xx, 0 upstream",
        theirs: REFUSED,
        rows: &["coding chunked last, lines"],
    },
    Difference {
        why: "both refuse: a version is 505 here, and a line that has none is 400",
        ours: "5xx, 0 upstream",
        theirs: REFUSED,
        rows: &["HTTP/0.9 by its name", "the HTTP/2 preface"],
    },
    Difference {
        why: "both refuse, as above",
        ours: REFUSED,
        theirs: "5xx, 0 upstream",
        rows: &["HTTP/2"],
    },
    Difference {
        why: "nginx takes any 1.x (RFC 9110 2.5 would have it so); nobody sends one, and what it \
              would mean nobody knows",
        ours: "5xx, 0 upstream",
        theirs: TAKEN,
        rows: &["HTTP/1.2", "HTTP/1.9"],
    },
    Difference {
        why: "a version has one digit behind its dot",
        ours: REFUSED,
        theirs: TAKEN,
        rows: &["HTTP/1.10"],
    },
    Difference {
        why: "nginx answers HTTP/0.9 without a head; that is not HTTP/1",
        ours: REFUSED,
        theirs: ", 1 upstream",
        rows: &["HTTP/0.9", "no version, a space", "target with a LF"],
    },
    Difference {
        why: "a request line has two single spaces (RFC 9112 3), and no more than one empty line \
              comes before it (2.2): a repair is where readings part",
        ours: REFUSED,
        theirs: TAKEN,
        rows: &[
            "two spaces before the target",
            "two spaces behind the target",
            "space behind the version",
            "LF first",
            "two empty lines first",
        ],
    },
    Difference {
        why: "nginx takes a bare LF for a line end; RFC 9112 2.2 allows it, and smugglers need it",
        ours: REFUSED,
        theirs: TAKEN,
        rows: &[
            "request line that ends in LF",
            "all lines end in LF",
            "head that ends in LF",
            "head that ends in LF LF",
            "name with a LF",
            "value with a bare LF",
            "line that ends in LF",
        ],
    },
    Difference {
        why: "nginx takes CR CR LF for a line end; a bare CR is to be refused (RFC 9112 2.2)",
        ours: REFUSED,
        theirs: TAKEN,
        rows: &["length and a CR", "value before a CR"],
    },
    Difference {
        why: "nginx drops a field whose name is no token; a message with one is not HTTP",
        ours: REFUSED,
        theirs: TAKEN,
        rows: &["no colon", "name with a bracket", "name with a slash", "name beyond ASCII"],
    },
    Difference {
        why: "nginx passes controls in a value on; RFC 9110 5.5 has none but the tab",
        ours: REFUSED,
        theirs: TAKEN,
        rows: &[
            "value with 0x01",
            "value with a backspace",
            "value with a vertical tab",
            "value with ESC",
            "value with DEL",
        ],
    },
    Difference {
        why: "nginx passes on what no URI has (RFC 3986 2): its upstream may read it as it likes",
        ours: REFUSED,
        theirs: "4xx 2xx, 2 upstream",
        rows: &["target beyond ASCII", "target with a fragment"],
    },
    Difference {
        why: "nginx has one upstream and looks at no scheme; we would have to connect",
        ours: REFUSED,
        theirs: TAKEN,
        rows: &["target of another scheme", "target with port 0"],
    },
    Difference {
        why: "nginx has one upstream, which says 404; we would have to connect there",
        ours: REFUSED,
        theirs: "4xx 2xx, 2 upstream",
        rows: &[
            "target with port 65536",
            "target with an address in hex",
            "port against the target",
        ],
    },
    Difference {
        why: "nginx takes the host out of what is no Host (RFC 9110 7.2), and passes the rest on",
        ours: REFUSED,
        theirs: TAKEN,
        rows: &[
            "Host with a user",
            "Host with a port of letters",
            "Host with port 65536",
            "Host with two ports",
            "Host beyond ASCII",
        ],
    },
    Difference {
        why: "the target's host wins (RFC 9112 3.2.2); whoever sends two different ones is up to \
              something",
        ours: REFUSED,
        theirs: TAKEN,
        rows: &["Host against the target"],
    },
    Difference {
        why: "as above; the 404 is upstream's, and HTTP/1.0 ends behind it",
        ours: REFUSED,
        theirs: "4xx, 1 upstream",
        rows: &["Host against it in HTTP/1.0"],
    },
    Difference {
        why: "nginx reads what is in a chunk's line behind its size, and trailers, up to the next \
              LF, whatever it is; RFC 9112 7.1 has a grammar for it",
        ours: REFUSED,
        theirs: TAKEN,
        rows: &[
            "space behind a chunk size",
            "chunk size in two words",
            "chunk size line that ends in LF",
            "extension without a name",
            "extension with a quoted line",
            "extension with a NUL",
            "last chunk that ends in LF",
            "last chunk and LF",
            "trailer without a colon",
            "trailer behind a space",
            "trailer folded",
            "trailer with a NUL",
            "trailer that ends in LF",
        ],
    },
    Difference {
        why: "nginx takes a bare LF behind a chunk's data",
        ours: REFUSED,
        theirs: TAKEN,
        rows: &["chunk that ends in LF", "chunk shorter than its size"],
    },
    Difference {
        why: "a limit of ours: digits of a chunk size, field lines, extensions, trailers",
        ours: REFUSED,
        theirs: TAKEN,
        rows: &[
            "chunk size of 17 zeros",
            "many short fields",
            "a long chunk extension",
            "long trailers",
            "many trailers",
        ],
    },
    Difference {
        why: "a limit of ours: a method of 65 bytes",
        ours: "5xx, 0 upstream",
        theirs: "4xx 2xx, 2 upstream",
        rows: &["a long method"],
    },
    Difference {
        why: "nginx knows methods of capitals alone; any token is one (RFC 9110 9.1)",
        ours: "4xx 2xx, 2 upstream",
        theirs: REFUSED,
        rows: &["method in lower case", "method with a digit"],
    },
    Difference {
        why: "nginx must map a path to a location, so it decodes and tidies it; registries sign \
              paths, so we pass them byte for byte and read no meaning into them",
        ours: "4xx 2xx, 2 upstream",
        theirs: REFUSED,
        rows: &[
            "path with dots beyond the root",
            "path with %2e and %2f",
            "path with %00",
            "path with a broken escape",
        ],
    },
    Difference {
        why: "a tab is a blank, too (RFC 9110 5.6.3)",
        ours: TAKEN,
        theirs: REFUSED,
        rows: &["length in blanks"],
    },
    Difference {
        why: "as above",
        ours: TAKEN,
        theirs: "5xx, 0 upstream",
        rows: &["chunks in other case"],
    },
];

/// Of answers. nginx trusts the upstreams that its configuration names; we are sent to any host.
pub const ANSWERS: &[Difference] = &[
    Difference {
        why: "an upstream that closes without a word may answer the next time",
        ours: "503",
        theirs: "refused",
        rows: &["no answer at all"],
    },
    Difference {
        why: "nginx takes what is no status line of HTTP/1 for a body of HTTP/0.9, and sends it on \
              as it is: its client reads whatever it is",
        ours: "refused",
        theirs: "passed on",
        rows: &[
            "empty line first",
            "LF first",
            "a tab",
            "status below 100",
            "status signed",
            "status in letters",
            "HTTP/0.9",
            "ICY",
            "SSH",
            "HTTP/0.9's bare body",
        ],
    },
    Difference {
        why: "nginx looks for three digits and a line end, bare LF or not, and at no version",
        ours: "refused",
        theirs: "passed on",
        rows: &[
            "status line that ends in LF",
            "status line that ends in CR",
            "two spaces",
            "status of two digits",
            "status of four digits",
            "reason with a NUL",
            "HTTP/2.0",
            "HTTP/1.2",
            "HTTP/1.10",
        ],
    },
    Difference {
        why: "nginx takes the last Content-Length, and one it cannot read for none: the body then \
              ends with the connection",
        ours: "refused",
        theirs: "passed on",
        rows: &[
            "length repeated",
            "length conflicting",
            "length conflicting with none",
            "length listed",
            "length listed, conflicting",
            "length with a comma",
            "length signed +",
            "length signed -",
            "length -0",
            "length beyond 64 bits",
            "length that wraps to 5",
            "length of 40 digits",
            "length in hex",
            "length with an exponent",
            "length with a fraction",
            "length in two words",
            "length quoted",
            "length empty",
            "length in other digits",
            "length and a CR",
        ],
    },
    Difference {
        why: "nginx looks for `chunked` and passes any other coding by, off",
        ours: "refused",
        theirs: "passed on",
        rows: &["unknown coding and length", "coding gzip", "coding identity", "coding empty"],
    },
    Difference {
        why: "as in requests: names that are no tokens are dropped, controls pass, LF ends a line",
        ours: "refused",
        theirs: "passed on",
        rows: &[
            "no colon",
            "name with a bracket",
            "name with a slash",
            "name beyond ASCII",
            "name with a LF",
            "value before a CR",
            "value with a bare LF",
            "line that ends in LF",
            "value with 0x01",
            "value with a backspace",
            "value with a vertical tab",
            "value with ESC",
            "value with DEL",
        ],
    },
    Difference {
        why: "as in requests: in chunk lines and trailers anything goes up to the next LF, and a \
              chunk size may have any number of zeros",
        ours: "refused",
        theirs: "passed on",
        rows: &[
            "chunk size of 17 zeros",
            "space behind a chunk size",
            "chunk size in two words",
            "chunk size line that ends in LF",
            "chunk that ends in LF",
            "chunk shorter than its size",
            "extension without a name",
            "extension with a quoted line",
            "extension with a NUL",
            "last chunk that ends in LF",
            "last chunk and LF",
            "trailer without a colon",
            "trailer behind a space",
            "trailer folded",
            "trailer with a NUL",
            "trailer that ends in LF",
        ],
    },
];
