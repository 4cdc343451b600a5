use std::ops::ControlFlow;

use proptest::prelude::*;

use super::*;

/// A small archive with all kinds of headers, as a beginning for damage.
fn sample() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let layer = b"layer";
    let config = serde_json::json!({
        "os": "linux", "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", Digest::of_bytes(layer))]},
    });
    let long = format!("{}/layer.tar", "d".repeat(150));
    let manifest = serde_json::json!([{"Config": "c.json", "RepoTags": ["x:1"], "Layers": ["l"]}]);
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    add("manifest.json", manifest.to_string().as_bytes());
    add("c.json", config.to_string().as_bytes());
    add(&long, layer);
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    tar.append_link(&mut header, "l", &long).unwrap();
    tar.append_pax_extensions([("path", b"renamed".as_slice()), ("size", b"3")])
        .unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(3);
    tar.append_data(&mut header, "name", b"abc".as_slice()).unwrap();
    tar.into_inner().unwrap()
}

fn read(bytes: &[u8]) -> Result<Vec<Imported>, Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("archive");
    std::fs::write(&path, bytes).unwrap();
    let blobs = Blobs::open(dir.path().join("blobs")).unwrap();
    read_archive(&path, &blobs, &Platform::linux("amd64"), None, &|_| {
        ControlFlow::Continue(())
    })
}

#[test]
fn long_names_and_links_are_followed() {
    let images = read(&sample()).unwrap();
    assert_eq!(images[0].image.layers[0].digest, Digest::of_bytes(b"layer"));
}

#[test]
fn an_archive_cut_anywhere_is_an_error_or_whole() {
    let sample = sample();
    let whole = read(&sample).unwrap();
    for end in (0..sample.len()).step_by(97) {
        match read(&sample[..end]) {
            // Only what comes after the image is missing.
            Ok(images) => assert_eq!(images, whole, "{end}"),
            Err(Error::NotAnArchive { .. } | Error::Lacking { .. }) => {}
            Err(error) => panic!("{end}: {error:?}"),
        }
    }
}

#[test]
fn a_bomb_is_refused() {
    // Longer than the floor that any archive may have, and much longer than its file.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bomb");
    let mut gzip =
        flate2::write::GzEncoder::new(std::fs::File::create(&path).unwrap(), flate2::Compression::fast());
    for _ in 0..(1 << 30 >> 20) + 1 {
        std::io::Write::write_all(&mut gzip, &vec![0; 1 << 20]).unwrap();
    }
    gzip.finish().unwrap();
    let blobs = Blobs::open(dir.path().join("blobs")).unwrap();
    let error = read_archive(&path, &blobs, &Platform::linux("amd64"), None, &|_| {
        ControlFlow::Continue(())
    });
    assert!(
        matches!(
            error,
            Err(Error::TooLong {
                what: "unpacked archive",
                ..
            })
        ),
        "{error:?}"
    );
    assert_eq!(blobs.list().unwrap(), crate::Listing::default());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_damage_is_survived(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        mend in any::<bool>(),
    ) {
        let mut bytes = sample();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
            if mend {
                // With a checksum that is right, so that the damage is looked at.
                let start = at / 512 * 512;
                let mut block: [u8; 512] = bytes[start..start + 512].try_into().unwrap();
                let sum: u32 = block.iter().enumerate().map(|(i, &b)| if (148..156).contains(&i) { 32 } else { u32::from(b) }).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                bytes[start..start + 512].copy_from_slice(&block);
            }
        }
        read(&bytes).ok();
    }
}
