use super::*;

fn fields(lines: &[(&str, &str)]) -> Fields {
    let mut fields = Fields::new();
    for (name, value) in lines {
        fields.push(name, value).unwrap();
    }
    fields
}

fn written(fields: &Fields) -> String {
    let mut out = Vec::new();
    fields.write_to(&mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn names_compare_without_case_and_keep_it() {
    let fields = fields(&[("Accept", "a"), ("x-y", "1"), ("ACCEPT", "b")]);
    assert_eq!(fields.get("accept"), Some(&b"a"[..]));
    assert_eq!(fields.get_str("X-Y"), Some("1"));
    assert_eq!(fields.all("accept").collect::<Vec<_>>(), [b"a", b"b"]);
    assert_eq!((fields.count("aCCept"), fields.count("x"), fields.len()), (2, 0, 3));
    assert!(fields.contains("X-y") && !fields.contains("x-") && !fields.is_empty());
    assert_eq!(written(&fields), "Accept: a\r\nx-y: 1\r\nACCEPT: b\r\n");
}

#[test]
fn setting_and_removing_take_every_line() {
    let mut fields = fields(&[("A", "1"), ("B", "2"), ("a", "3")]);
    fields.set("a", " 4\t").unwrap();
    assert_eq!(written(&fields), "B: 2\r\na: 4\r\n");
    fields.remove("b");
    fields.retain(|name, value| name == "a" && value == b"4");
    fields.push_number("N", u64::MAX).unwrap();
    assert_eq!(written(&fields), "a: 4\r\nN: 18446744073709551615\r\n");
    fields.remove("A");
    fields.remove("n");
    assert!(fields.is_empty());
}

#[test]
fn nothing_that_splits_a_message_gets_in() {
    let mut fields = fields(&[("A", "1")]);
    for value in ["a\r\nb", "a\nb", "a\rb", "a\0", "\n", "a\r\n", "\x7f", "a\x0bb"] {
        assert_eq!(fields.push("X", value), Err(Malformed::FieldValue), "{value:?}");
        assert_eq!(fields.set("A", value), Err(Malformed::FieldValue), "{value:?}");
    }
    for name in ["", "a b", "a:", "a\r\n", "\u{e9}", "a\0"] {
        assert_eq!(fields.push(name, "x"), Err(Malformed::FieldName), "{name:?}");
        assert_eq!(fields.push_number(name, 1), Err(Malformed::FieldName), "{name:?}");
        assert_eq!(fields.set(name, "x"), Err(Malformed::FieldName), "{name:?}");
    }
    assert_eq!(written(&fields), "A: 1\r\n");
    fields.push("Tab", b"\t a\tb\xff ").unwrap();
    assert_eq!(fields.get("tab"), Some(&b"a\tb\xff"[..]));
    assert_eq!(fields.get_str("tab"), None);
}

#[test]
fn lists_are_taken_apart() {
    for (lines, expected) in [
        (&["a"][..], &["a"][..]),
        (&["a,b", "c"], &["a", "b", "c"]),
        (&[" a ,\t, ,b,", ""], &["a", "b"]),
        (&["", ","], &[]),
        (&["private=\"a, b\", no-store"], &["private=\"a, b\"", "no-store"]),
        (&["x=\"a\\\", b\", c"], &["x=\"a\\\", b\"", "c"]),
        (&["\"a,b\",\"c,d\""], &["\"a,b\"", "\"c,d\""]),
        (&["x=\"a, no-store"], &["x=\"a", "no-store"]),
        (&["x=\"a\\", "b"], &["x=\"a\\", "b"]),
        (&["x=\"a\\\", y, \"z, w\""], &["x=\"a\\\", y, \"z", "w\""]),
        (&["\"", "a,b"], &["\"", "a", "b"]),
    ] {
        let mut fields = Fields::new();
        for line in lines {
            fields.push("List", line).unwrap();
        }
        assert_eq!(fields.tokens("list").collect::<Vec<_>>(), expected, "{lines:?}");
    }
    let mut fields = Fields::new();
    fields.push("List", b"a, \xff, b").unwrap();
    assert_eq!(fields.tokens("list").collect::<Vec<_>>(), ["a", "b"]);
    assert!(fields.has_token("LIST", "B") && !fields.has_token("list", ""));
}

#[test]
fn unclosed_quotes_cost_no_quadratic_time() {
    let mut fields = Fields::new();
    fields.push("List", String::from("\"") + &"\\\",".repeat(250_000)).unwrap();
    let start = std::time::Instant::now();
    assert_eq!(fields.tokens("list").count(), 250_000);
    assert!(start.elapsed().as_secs() < 5, "took {:?}", start.elapsed());
}

#[test]
fn hop_by_hop_fields_go() {
    let mut fields = fields(&[
        ("Host", "a"),
        ("Connection", "close, X-One, host"),
        ("connection", "x-two,content-length, \"x-three\""),
        ("Content-Length", "5"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("Proxy-Authorization", "Basic x"),
        ("Proxy-Authenticate", "Basic"),
        ("TE", "trailers"),
        ("Trailer", "X"),
        ("Transfer-Encoding", "chunked"),
        ("Upgrade", "websocket"),
        ("x-one", "1"),
        ("X-TWO", "2"),
        ("X-Three", "3"),
        ("Close", "an end-to-end field of that name"),
    ]);
    fields.strip_hop_by_hop();
    let names: Vec<_> = fields.iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["Host", "Content-Length", "X-Three", "Close"]);
}

#[test]
fn fields_are_equal_whatever_was_removed_before() {
    let mut one = fields(&[("X", "gone"), ("A", "1")]);
    one.remove("x");
    assert_eq!(one, fields(&[("A", "1")]));
    assert_ne!(one, fields(&[("A", "2")]));
    assert_ne!(one, fields(&[("a", "1")]));
    assert_ne!(one, fields(&[("A", "1"), ("A", "1")]));
}

#[test]
fn debug_output_holds_no_value() {
    let shown = format!("{:?}", fields(&[("Authorization", "Bearer secret")]));
    assert!(shown.contains("Authorization") && !shown.contains("secret"), "{shown}");
}
