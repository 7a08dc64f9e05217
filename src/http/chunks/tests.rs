use super::super::tests::{Body, decode, decode_cut};
use super::*;

/// Decodes `input` whole, cut in two at each byte, and byte by byte; all must give the same.
fn read(input: impl AsRef<[u8]>) -> Result<Option<Body>, Malformed> {
    let input = input.as_ref();
    let whole = decode(input);
    for at in 0..=input.len() {
        let (first, second) = input.split_at(at);
        let shown = String::from_utf8_lossy(first);
        assert_eq!(decode_cut([first, second]), whole, "cut behind {shown:?}");
    }
    assert_eq!(decode_cut(input.chunks(1)), whole, "byte by byte");
    whole
}

fn body(input: impl AsRef<[u8]>) -> (String, usize) {
    let body = read(input).expect("well formed").expect("whole");
    (String::from_utf8(body.data).unwrap(), body.len)
}

#[test]
fn bodies_are_read() {
    for (input, data) in [
        ("0\r\n\r\n", ""),
        ("0000000000000000\r\n\r\n", ""),
        ("5\r\nhello\r\n0\r\n\r\n", "hello"),
        ("5\r\nhello\r\n6\r\n world\r\n00\r\n\r\n", "hello world"),
        ("a\r\n0123456789\r\n0\r\n\r\n", "0123456789"),
        ("A\r\n0123456789\r\n0\r\n\r\n", "0123456789"),
        ("0000000000000002\r\n\r\n\r\n0\r\n\r\n", "\r\n"),
    ] {
        assert_eq!(body(input), (data.into(), input.len()), "{input:?}");
        let pipelined = format!("{input}GET / HTTP/1.1\r\n");
        assert_eq!(body(&pipelined), (data.into(), input.len()), "{pipelined:?}");
    }
}

#[test]
fn extensions_are_checked_and_dropped() {
    for line in [
        "5;a",
        "5;a=b",
        "5 ; a",
        "5\t;\ta\t=\tb",
        "5;a;b=c;d",
        "5;a=\"b c\"",
        "5;a=\"\\\"\\;\";b",
        "5;a=\"\u{e9};\"",
        "5;a=b ;c",
        "5;a=\"\"  ; c",
        "5;a ;b",
        "005;!#$=%&",
    ] {
        let input = format!("{line}\r\nhello\r\n0{}\r\n\r\n", line.trim_start_matches(['0', '5']));
        assert_eq!(body(&input), ("hello".into(), input.len()), "{line:?}");
    }
    for line in [
        "5;",
        "5;;a",
        "5 ",
        "5 a",
        "5;a=",
        "5;a= ",
        "5;=b",
        "5;a=b=c",
        "5;a b",
        "5;a=\"b",
        "5;a=\"b\"c",
        "5;a=b c",
        "5;a=b ",
        "5;a ",
        "5;a=\"\\\u{1}\"",
        "5;\u{e9}",
        "5;a\0",
        "5;a=\"\n\"",
        "5,a",
        "5;a,b",
    ] {
        let input = format!("{line}\r\nhello\r\n0\r\n\r\n");
        assert_eq!(read(&input), Err(Malformed::ChunkLine), "{line:?}");
    }
}

#[test]
fn size_lines_that_are_refused() {
    for input in [
        "\r\n",
        "\n",
        " 5\r\n",
        "\t5\r\n",
        "+5\r\n",
        "-5\r\n",
        "0x5\r\n",
        "g\r\n",
        "5g\r\n",
        "5\n",
        "5\rX",
        "5\r\r\n",
        "5_0\r\n",
        ";a\r\n",
        "00000000000000005\r\n",
        "10000000000000000\r\n",
        "fffffffffffffffff\r\n",
        "5.\r\n",
        "\u{ff15}\r\n",
        "\0",
        "0\n\n",
        "0\r\r\n",
    ] {
        assert_eq!(read(input), Err(Malformed::ChunkLine), "{input:?}");
        let later = format!("1\r\na\r\n{input}");
        assert_eq!(read(&later), Err(Malformed::ChunkLine), "{later:?}");
    }
}

#[test]
fn chunks_end_in_cr_lf() {
    for input in [
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello!\n0\r\n\r\n",
        "5\r\nhello\n\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n",
        "5\r\nhello\r\r\n",
        "5\r\nhello \r\n",
    ] {
        assert_eq!(read(input), Err(Malformed::ChunkEnd), "{input:?}");
    }
}

#[test]
fn what_is_cut_short_is_not_whole() {
    let input = "5;a=\"b\"\r\nhello\r\n0\r\nX: y\r\n\r\n";
    for end in 0..input.len() {
        assert_eq!(decode(&input.as_bytes()[..end]), Ok(None), "{:?}", &input[..end]);
    }
}

#[test]
fn the_largest_size_is_data_to_come() {
    let mut chunks = Chunks::new();
    let buf = b"ffffffffffffffff\r\nabc";
    assert_eq!(chunks.step(buf), Ok(Chunk::Data { skip: 18, len: 3 }));
    assert_eq!(chunks.step(b""), Ok(Chunk::Need));
    assert_eq!(chunks.step(b"d"), Ok(Chunk::Data { skip: 0, len: 1 }));
}

#[test]
fn steps_say_what_to_consume() {
    let mut chunks = Chunks::new();
    assert_eq!(chunks.step(b""), Ok(Chunk::Need));
    assert_eq!(chunks.step(b"3\r"), Ok(Chunk::Skip(2)));
    assert_eq!(chunks.step(b"\nabc\r\n2\r\nde"), Ok(Chunk::Data { skip: 1, len: 3 }));
    assert_eq!(chunks.step(b"\r\n2\r\nde"), Ok(Chunk::Data { skip: 5, len: 2 }));
    assert_eq!(chunks.step(b"\r\n0\r\n\r\nnext"), Ok(Chunk::End { len: 7 }));
    assert_eq!(chunks.step(b"next"), Ok(Chunk::End { len: 0 }));
    assert_eq!(chunks.step(b""), Ok(Chunk::End { len: 0 }));
    assert!(chunks.take_trailers().is_empty());
}

#[test]
fn an_error_stays() {
    let mut chunks = Chunks::new();
    assert_eq!(chunks.step(b"x"), Err(Malformed::ChunkLine));
    assert_eq!(chunks.step(b"0\r\n\r\n"), Err(Malformed::ChunkLine));
    assert_eq!(chunks.step(b""), Err(Malformed::ChunkLine));
}

#[test]
fn trailers_are_read_and_filtered() {
    let input = "1\r\na\r\n0\r\nX-Sum: 1, 2 \r\nContent-Length: 5\r\nHost: b\r\n\
                 Transfer-Encoding: x\r\n\
                 Authorization: c\r\nx-empty:\r\nSet-Cookie: d\r\n\r\nrest";
    let found = read(input).unwrap().unwrap();
    let trailers: Vec<_> = found.trailers.iter().collect();
    assert_eq!(trailers, [("X-Sum", &b"1, 2"[..]), ("x-empty", b"")]);
    assert_eq!(found.len, input.len() - 4);
}

#[test]
fn trailers_that_are_refused() {
    use Malformed::*;
    for (lines, error) in [
        ("X : a\r\n\r\n", FieldName),
        ("X\r\n\r\n", FieldName),
        (" X: a\r\n\r\n", FieldName),
        ("X: a\r\n b\r\n\r\n", FieldName),
        ("X: a\0\r\n\r\n", FieldValue),
        ("X: a\rb\r\n\r\n", FieldValue),
        ("X: a\n\r\n", LineEnd),
        ("\n", LineEnd),
        ("X: a\r\n\n", LineEnd),
        ("\rX: a\r\n\r\n", LineEnd),
    ] {
        assert_eq!(read(format!("0\r\n{lines}")), Err(error), "{lines:?}");
    }
    let many = format!("0\r\n{}\r\n", "X: a\r\n".repeat(TRAILER_FIELDS_MAX + 1));
    assert_eq!(decode(many.as_bytes()), Err(TooManyFields));
}

#[test]
fn limits_hold_to_the_byte() {
    let line = |len: usize| format!("0;{}\r\n\r\n", "a".repeat(len - "0;\r\n".len()));
    assert!(matches!(decode(line(LINE_MAX).as_bytes()), Ok(Some(_))));
    assert_eq!(decode(line(LINE_MAX + 1).as_bytes()), Err(Malformed::ChunkLineTooLong));
    let endless = format!("1;{}", "a".repeat(LINE_MAX));
    assert_eq!(decode(endless.as_bytes()), Err(Malformed::ChunkLineTooLong));
    let trailers = |len: usize| format!("0\r\nX:{}\r\n\r\n", "a".repeat(len - "X:\r\n\r\n".len()));
    assert!(matches!(decode(trailers(TRAILERS_MAX).as_bytes()), Ok(Some(_))));
    let over = trailers(TRAILERS_MAX + 1);
    assert_eq!(decode(over.as_bytes()), Err(Malformed::TrailersTooLarge));
    assert_eq!(decode_cut(over.as_bytes().chunks(7)), Err(Malformed::TrailersTooLarge));
    // The limit is one line's, not the body's.
    let long = format!("1;{}\r\na\r\n", "b".repeat(LINE_MAX - 4)).repeat(3) + "0\r\n\r\n";
    assert!(matches!(decode(long.as_bytes()), Ok(Some(_))));
}

#[test]
fn what_is_written_reads_back() {
    for len in [1, 9, 10, 15, 16, 255, 256, 4095, 65536, usize::MAX] {
        let mut out = Vec::new();
        chunk_head(len, &mut out);
        assert_eq!(out, format!("{len:x}\r\n").into_bytes());
    }
    let mut trailers = Fields::new();
    trailers.push("X", "y").unwrap();
    let mut out = b"1\r\na\r\n".to_vec();
    last_chunk(&trailers, &mut out);
    assert_eq!(read(&out).unwrap().unwrap().trailers, trailers);
    let mut out = Vec::new();
    last_chunk(&Fields::new(), &mut out);
    assert_eq!(out, LAST_CHUNK);
}
