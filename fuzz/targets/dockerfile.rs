//! A Dockerfile, with build arguments and a target of the input's own.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| banger_fuzz::recipe::read(input, banger_recipe::Kind::Dockerfile));
