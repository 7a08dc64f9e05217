//! The little DER (ITU-T X.690) that a certificate's parts are taken apart and put together with.

/// Tags of the parts looked at.
const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;

/// The unsigned certificate (TBSCertificate, RFC 5280, section 4.1) of `certificate`, with another
/// issuer; and the algorithm it is to be signed by. Nothing where `certificate` is none.
pub(super) fn reissued(certificate: &[u8], issuer: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let (outer, _) = element(certificate)?;
    let (unsigned, rest) = element(outer.content)?;
    let (algorithm, _) = element(rest)?;
    // Version, serial number, algorithm; the issuer; all the others.
    let mut behind = unsigned.content;
    for _ in 0..3 {
        behind = element(behind)?.1;
    }
    let before = unsigned.content.get(..unsigned.content.len() - behind.len())?;
    let (_, behind) = element(behind)?;
    let unsigned = element_of(SEQUENCE, &[before, issuer, behind]);
    Some((unsigned, algorithm.whole.to_vec()))
}

/// The certificate of its three parts.
pub(super) fn certificate(unsigned: &[u8], algorithm: &[u8], signature: &[u8]) -> Vec<u8> {
    // A signature is whole bytes: no bits of the last one are left over.
    let signature = element_of(BIT_STRING, &[&[0], signature]);
    element_of(SEQUENCE, &[unsigned, algorithm, &signature])
}

struct Element<'a> {
    whole: &'a [u8],
    content: &'a [u8],
}

/// The first element of `bytes`, and what follows it.
fn element(bytes: &[u8]) -> Option<(Element<'_>, &[u8])> {
    let first = *bytes.get(1)?;
    let (header, len) = match first {
        0..=0x7F => (2, usize::from(first)),
        0x81..=0x84 => {
            let header = 2 + usize::from(first & 0x0F);
            let octets = bytes.get(2..header)?.iter();
            (header, octets.fold(0, |len, octet| len << 8 | usize::from(*octet)))
        }
        _ => return None,
    };
    let (whole, rest) = bytes.split_at_checked(header.checked_add(len)?)?;
    Some((Element { whole, content: whole.get(header..)? }, rest))
}

/// An element of this tag and content.
fn element_of(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let len = content.len().to_be_bytes();
    let zeros = len.iter().take_while(|octet| **octet == 0).count();
    let octets = len.get(zeros..).unwrap_or_default();
    let mut out = vec![tag];
    if content.len() >= 0x80 {
        out.push(0x80 | octets.len() as u8);
        out.extend_from_slice(octets);
    } else {
        out.push(content.len() as u8);
    }
    out.extend_from_slice(&content);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_come_apart_as_they_were_put_together() {
        for len in [0, 1, 127, 128, 255, 256, 65_535, 65_536] {
            let content = vec![7; len];
            let mut bytes = element_of(SEQUENCE, &[&content]);
            let whole = bytes.len();
            bytes.extend_from_slice(b"rest");
            let (found, rest) = element(&bytes).unwrap();
            assert_eq!(
                (found.content, found.whole.len(), rest),
                (&content[..], whole, &b"rest"[..])
            );
        }
    }

    #[test]
    fn what_is_no_certificate_gives_nothing() {
        let deep = element_of(SEQUENCE, &[&element_of(SEQUENCE, &[b"\x02\x01\x01"])]);
        for bytes in [&b""[..], &[0x30], &[0x30, 0x80], &[0x30, 5, 1], &[0x30, 0x85, 1], &deep] {
            assert_eq!(reissued(bytes, b""), None, "{bytes:?}");
        }
    }
}
