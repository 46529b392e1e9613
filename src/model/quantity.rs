//! Quantities in the form that an administrator reads.

/// Writes bytes in binary multiples with three digits: `9.84T`.
pub fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["K", "M", "G", "T", "P", "E"];
    if bytes < 1024 {
        return format!("{bytes}");
    }
    let exponent = (u64::BITS - 1 - bytes.leading_zeros()) / 10;
    let unit = UNITS[exponent as usize - 1];
    let whole = 1u64 << (exponent * 10);
    // Hundredths are enough, and u128 keeps them exact.
    let hundredths = u128::from(bytes) * 100 / u128::from(whole);
    match hundredths {
        0..=999 => format!("{}.{:02}{unit}", hundredths / 100, hundredths % 100),
        1000..=9999 => format!("{}.{}{unit}", hundredths / 100, hundredths % 100 / 10),
        _ => format!("{}{unit}", hundredths / 100),
    }
}
