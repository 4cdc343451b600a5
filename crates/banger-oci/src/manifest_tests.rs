use proptest::prelude::*;

use super::*;

fn descriptor(media_type: &str, contents: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: Digest::of_bytes(contents),
        size: contents.len() as u64,
    }
}

#[test]
fn what_we_write_we_read() {
    let config = descriptor(media::OCI_CONFIG, b"config");
    let layers = [descriptor(
        "application/vnd.oci.image.layer.v1.tar+zstd",
        b"layer",
    )];
    let bytes = write_manifest(&config, &layers);
    let Parsed::Manifest(manifest) = parse(&bytes, None, "x").unwrap() else {
        panic!("no manifest");
    };
    assert_eq!(manifest.config, config);
    assert_eq!(manifest.layers, layers);

    let bytes = write_index(&[Named {
        descriptor: descriptor(media::OCI_MANIFEST, &bytes),
        platform: Platform::linux("amd64"),
        annotations: vec![(REF_NAME, "12".to_owned())],
    }]);
    let Parsed::Index(index) = parse(&bytes, None, "x").unwrap() else {
        panic!("no index");
    };
    assert_eq!(index.entries[0].name.as_deref(), Some("12"));
    assert_eq!(index.entries[0].full_name, None);
    assert_eq!(index.entries[0].platform, Some(Platform::linux("amd64")));
}

/// An index with entries for these platforms; `-` is one without.
fn index(platforms: &[&str]) -> Index {
    let entries = platforms.iter().enumerate().map(|(number, platform)| {
        let mut parts = platform.split('/').map(str::to_owned);
        IndexEntry {
            descriptor: descriptor(media::OCI_MANIFEST, &[u8::try_from(number).unwrap()]),
            platform: (*platform != "-").then(|| Platform {
                os: parts.next().unwrap(),
                architecture: parts.next().unwrap(),
                variant: parts.next(),
            }),
            name: None,
            full_name: None,
            is_attestation: *platform == "unknown/unknown",
        }
    });
    Index {
        entries: entries.collect(),
    }
}

#[test]
fn the_first_entry_that_fits_is_chosen() {
    for (platforms, expected) in [
        (["linux/arm64", "linux/amd64", "linux/amd64"].as_slice(), Some(1)),
        (&["linux/amd64/v3", "linux/amd64/v1"], Some(1)),
        (&["unknown/unknown", "-"], Some(1)),
        (&["-", "linux/amd64"], Some(1)),
        (&["-", "-"], None),
        (&["linux/amd64/v3", "linux/arm64", "linux/arm64"], None),
        (&[], None),
    ] {
        let index = index(platforms);
        let chosen = index.select(&Platform::linux("amd64"), "x");
        match (chosen, expected) {
            (Ok(entry), Some(number)) => {
                assert_eq!(
                    entry.descriptor, index.entries[number].descriptor,
                    "{platforms:?}"
                );
            }
            (Err(Error::NoPlatform { .. }), None) => {}
            (other, _) => panic!("{platforms:?}: {other:?}"),
        }
    }
    let error = index(&["linux/amd64/v3", "linux/arm64", "unknown/unknown", "linux/arm64"])
        .select(&Platform::linux("amd64"), "x")
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "x is not made for linux/amd64, but for linux/amd64/v3, linux/arm64"
    );
}

#[test]
fn what_a_document_is_it_says_itself_or_its_type_or_its_contents() {
    let index = br#"{"schemaVersion":2,"manifests":[]}"#;
    assert!(matches!(parse(index, None, "x"), Ok(Parsed::Index(_))));
    assert!(matches!(
        parse(index, Some("application/json"), "x"),
        Ok(Parsed::Index(_))
    ));
    let manifest = Some(media::OCI_MANIFEST);
    assert!(matches!(
        parse(index, manifest, "x"),
        Err(Error::Malformed { what: "manifest", .. })
    ));
    let own = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    assert!(matches!(parse(own, manifest, "x"), Ok(Parsed::Index(_))));
    let both = br#"{"schemaVersion":2,"manifests":[],"layers":[]}"#;
    assert!(matches!(
        parse(both, None, "x"),
        Err(Error::Malformed { what: "index", .. })
    ));
    let signed = Some("application/vnd.docker.distribution.manifest.v1+prettyjws");
    let schema_1 = br#"{"schemaVersion":2}"#;
    assert!(matches!(parse(schema_1, signed, "x"), Err(Error::Schema1 { .. })));
}

/// Something like JSON, with the words of manifests in it.
fn json() -> impl Strategy<Value = serde_json::Value> {
    let words = prop::sample::select(vec![
        "schemaVersion",
        "mediaType",
        "config",
        "layers",
        "manifests",
        "digest",
        "size",
        "platform",
        "annotations",
        "os",
        "architecture",
        media::OCI_INDEX,
        media::OCI_MANIFEST,
        media::OCI_CONFIG,
        "sha256:00",
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    ]);
    let leaf = prop_oneof![
        words.clone().prop_map(serde_json::Value::from),
        any::<i64>().prop_map(serde_json::Value::from),
        Just(serde_json::Value::from(2)),
        Just(serde_json::Value::Null),
    ];
    leaf.prop_recursive(4, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
            prop::collection::vec((words.clone(), inner), 0..8).prop_map(|fields| fields
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect()),
        ]
    })
}

proptest! {
    #[test]
    fn any_document_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), value in json()) {
        for said in [None, Some(media::OCI_INDEX), Some(media::OCI_MANIFEST)] {
            parse(&bytes, said, "x").ok();
            let mut value = value.clone();
            if let Some(fields) = value.as_object_mut() {
                fields.insert("schemaVersion".to_owned(), 2.into());
            }
            if let Ok(Parsed::Index(index)) = parse(value.to_string().as_bytes(), said, "x") {
                index.select(&Platform::linux("amd64"), "x").ok();
            }
        }
        crate::config::ImageConfig::parse(value.to_string().as_bytes()).ok();
    }
}
