//! The system's clock.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    millis(SystemTime::now())
}

/// A time in milliseconds since 1970, 0 for what lies before.
pub fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_milliseconds_since_1970() {
        assert_eq!(millis(UNIX_EPOCH + Duration::from_micros(1_500_999)), 1500);
        assert_eq!(millis(UNIX_EPOCH - Duration::from_secs(1)), 0);
        // After 2020, before 2100.
        assert!((1_577_836_800_000..4_102_444_800_000).contains(&now_ms()));
    }
}
