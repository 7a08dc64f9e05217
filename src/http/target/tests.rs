use super::*;

#[test]
fn hosts_have_one_spelling() {
    let long_label = "a".repeat(63);
    let long = [&*long_label, &long_label, &long_label, &"a".repeat(61)].join(".");
    for (text, shown) in [
        ("a", "a"),
        ("Registry-1.Docker.IO", "registry-1.docker.io"),
        ("ghcr.io.", "ghcr.io"),
        ("_dmarc.a_b.example", "_dmarc.a_b.example"),
        ("123.example", "123.example"),
        ("1.2.3.4.example", "1.2.3.4.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("0xyz", "0xyz"),
        ("r3---sn-x.a", "r3---sn-x.a"),
        ("127.0.0.1", "127.0.0.1"),
        ("255.255.255.255", "255.255.255.255"),
        ("[::1]", "[::1]"),
        ("[2001:DB8:0:0::1]", "[2001:db8::1]"),
        ("[::ffff:127.0.0.1]", "[::ffff:127.0.0.1]"),
        (&long_label, &long_label),
        (&long, &long),
    ] {
        let host = Host::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(host.to_string(), shown);
        assert_eq!(Host::parse(shown), Ok(host.clone()));
        let is_name = matches!(host, Host::Name(_));
        assert_eq!(host.as_name(), is_name.then_some(shown));
    }
    assert_eq!(long.len(), 253);
}

#[test]
fn hosts_that_are_refused() {
    let long_label = "a".repeat(64);
    let long = "a.".repeat(126) + "aa";
    for text in [
        "",
        ".",
        "..",
        "a..b",
        ".a",
        "a..",
        "a b",
        "a/b",
        "a:b",
        "a@b",
        "a%41",
        "\u{e9}.example",
        "a\0",
        "a,b",
        "*",
        "*.a",
        "[",
        "[]",
        "::1",
        "[::1",
        "::1]",
        "[::1]x",
        "[::1%eth0]",
        "[::1%25eth0]",
        "[v1.x]",
        "[127.0.0.1]",
        "[[::1]]",
        "1",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "0x",
        "0X1",
        "a.0x1f",
        "a.1",
        "127.0.0.1.",
        "0177.0.0.1",
        "127.0.0.01",
        "256.0.0.1",
        "1.2.3.4.5",
        "127.0.0.0x1",
        "a\\b",
        "a#b",
        "a?b",
        "(a)",
        "a'b",
        &long_label,
        &long,
    ] {
        assert_eq!(Host::parse(text), Err(Malformed::Host), "{text:?}");
    }
}

#[test]
fn authorities_read_and_print() {
    for (text, port, shown) in [
        ("a", None, "a"),
        ("a:", None, "a"),
        ("A.:443", Some(443), "a:443"),
        ("a:00080", Some(80), "a:80"),
        ("a:65535", Some(65535), "a:65535"),
        ("127.0.0.1:1", Some(1), "127.0.0.1:1"),
        ("[::1]", None, "[::1]"),
        ("[::1]:8080", Some(8080), "[::1]:8080"),
    ] {
        let authority = Authority::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!((authority.port, &*authority.to_string()), (port, shown));
        assert_eq!(authority.port_for(Scheme::Https), port.unwrap_or(443));
    }
    for text in [
        "", ":", ":80", "a:0", "a:65536", "a:000080", "a:-1", "a:+1", "a: 1", "a:1 ", "a:1:1",
        "a:x", "u@a", "u:1@a:1", "::1:80", "[::1]80", "[::1]:", "[::1]:x", "[::1]x:1", "]:80",
        "a]:80",
    ] {
        let expected = if text == "[::1]:" { Ok("[::1]".into()) } else { Err(Malformed::Host) };
        assert_eq!(Authority::parse(text).map(|it| it.to_string()), expected, "{text:?}");
    }
}

#[test]
fn targets_take_the_form_their_method_allows() {
    for (method, text, shown) in [
        (Method::GET, "/", "/"),
        (Method::GET, "/a?b=%2f&c=/?", "/a?b=%2f&c=/?"),
        (Method::GET, "//a", "//a"),
        (Method::GET, "http://A:80", "http://a:80/"),
        (Method::GET, "hTTps://a/x?y", "https://a/x?y"),
        (Method::GET, "http://a?x=http://b/", "http://a/?x=http://b/"),
        (Method::GET, "http://a//x", "http://a//x"),
        (Method::OPTIONS, "*", "*"),
        (Method::OPTIONS, "http://a", "http://a"),
        (Method::OPTIONS, "http://a/", "http://a/"),
        (Method::OPTIONS, "http://a?x", "http://a/?x"),
        (Method::CONNECT, "[::1]:443", "[::1]:443"),
    ] {
        let target = Target::parse(&method, text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(target.to_string(), shown);
        assert_eq!(Target::parse(&method, shown), Ok(target));
    }
    let options = Target::parse(&Method::OPTIONS, "http://a").unwrap();
    assert!(matches!(options, Target::Absolute { path, .. } if &*path == "*"));
}

#[test]
fn targets_that_are_refused() {
    for (method, text, error) in [
        (Method::GET, "", Malformed::Target),
        (Method::GET, "*", Malformed::Target),
        (Method::GET, "a", Malformed::Target),
        (Method::GET, "a:443", Malformed::Target),
        (Method::GET, "/#", Malformed::Target),
        (Method::GET, "/\u{e9}", Malformed::Target),
        (Method::GET, "/a b", Malformed::Target),
        (Method::GET, "/a\r\nb", Malformed::Target),
        (Method::GET, "http://a/#x", Malformed::Target),
        (Method::GET, "http://a#x", Malformed::Target),
        (Method::GET, "http:a", Malformed::Target),
        (Method::GET, "://a", Malformed::Target),
        (Method::GET, "ws://a/", Malformed::Target),
        (Method::GET, "xhttp://a/", Malformed::Target),
        (Method::GET, "http://", Malformed::Host),
        (Method::GET, "http://?x", Malformed::Host),
        (Method::GET, "http://a:b/", Malformed::Host),
        (Method::GET, "http://a@b/", Malformed::Host),
        (Method::GET, "http://a%2fb/", Malformed::Host),
        (Method::OPTIONS, "**", Malformed::Target),
        (Method::CONNECT, "a", Malformed::Target),
        (Method::CONNECT, "*", Malformed::Host),
        (Method::CONNECT, "/", Malformed::Host),
        (Method::CONNECT, "a:443/", Malformed::Host),
        (Method::CONNECT, "https://a:443", Malformed::Host),
    ] {
        assert_eq!(Target::parse(&method, text), Err(error), "{method} {text:?}");
    }
    assert_eq!(Target::origin("a"), Err(Malformed::Target));
    assert_eq!(Target::origin("/ HTTP/1.1\r\n"), Err(Malformed::Target));
}

#[test]
fn paths_split_at_the_first_question_mark() {
    assert_eq!(split_path("/a"), ("/a", None));
    assert_eq!(split_path("/a?"), ("/a", Some("")));
    assert_eq!(split_path("/a?b?c"), ("/a", Some("b?c")));
}
