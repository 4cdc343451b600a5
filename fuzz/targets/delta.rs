//! A difference that nobody made, put onto a small file.
#![no_main]

use hostkit::delta::Pieces;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|difference: &[u8]| {
    // How long the disk becomes is for the caller to have checked; here it must fit into memory.
    if let Some(length) = difference.get(12..20).and_then(|bytes| bytes.try_into().ok())
        && u64::from_le_bytes(length) > 1 << 20
    {
        return;
    }
    let to = banger_fuzz::file(&banger_fuzz::scratch().join("disk"), &[7; 3000]);
    let mut pieces = Pieces::of(&to, |_| Ok(())).expect("a file");
    let applied = pieces.apply(difference, &to);
    if applied.is_ok() {
        let now = Pieces::of(&to, |_| Ok(())).expect("a file");
        assert_eq!(pieces, now, "what is known is what is there");
    }
});
