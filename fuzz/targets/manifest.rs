//! What a registry says of an image. The first byte says which document it is.
#![no_main]

use banger_oci::{Reference, fuzzing};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((which, input)) = input.split_first() else {
        return;
    };
    match which % 4 {
        0 => fuzzing::document(input),
        1 => fuzzing::configuration(input),
        2 => fuzzing::challenge(input),
        _ => {
            let Ok(text) = std::str::from_utf8(input) else {
                return;
            };
            if let Ok(reference) = Reference::parse(text) {
                let shown = reference.to_string();
                assert_eq!(Reference::parse(&shown).as_ref(), Ok(&reference), "{shown}");
            }
        }
    }
});
