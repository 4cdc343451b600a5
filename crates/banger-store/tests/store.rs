//! The store through its public face: what callers rely on.

#![expect(clippy::unwrap_used, reason = "a test says by panicking what went wrong")]

use banger_store::{Store, StoreError, images, kernels, leases, ledger, publications, vms};
use std::net::Ipv4Addr;

use jiff::Timestamp;

fn kernel(name: &str) -> kernels::KernelRow {
    kernels::KernelRow {
        name: name.into(),
        version: "6.1".into(),
        format: "elf".into(),
        sha256: "00".into(),
        size: 1 << 40,
        modules: 7,
        pvh: true,
        source: "file:vmlinux".into(),
        created: Timestamp::UNIX_EPOCH,
    }
}

fn image(id: &str, name: &str) -> images::ImageRow {
    images::ImageRow {
        id: id.into(),
        names: vec![name.into()],
        kernel: "k".into(),
        sha256: "00".into(),
        size: 1,
        used: 1,
        source: "test".into(),
        created: Timestamp::UNIX_EPOCH,
        digest: None,
        index_digest: None,
        config: None,
        registered: None,
    }
}

fn vm(id: &str, name: &str) -> vms::VmRow {
    vms::VmRow {
        id: id.into(),
        name: name.into(),
        image: "i1".into(),
        image_name: "debian".into(),
        kernel: "k".into(),
        vcpus: 2,
        memory_mib: 512,
        disk: 1 << 33,
        vmm: None,
        labels: [("team".to_owned(), "a b\"c".to_owned())].into(),
        ephemeral: true,
        phase: "\"stopped\"".into(),
        created: Timestamp::UNIX_EPOCH,
        system_disk: "reflink".into(),
        generation: 3,
        work_disk: 1 << 35,
        nat: false,
        autostart: true,
        restart: "on-failure".into(),
        expires: Some(Timestamp::UNIX_EPOCH),
        allow: "guests,lan".into(),
    }
}

async fn filled(path: &std::path::Path) -> Store {
    let store = Store::open(path).unwrap();
    store
        .write(|tx| {
            kernels::insert(tx, &kernel("k"))?;
            images::insert(tx, &image("i1", "debian"), &[])?;
            vms::insert(tx, &vm("v1", "dev"))
        })
        .await
        .unwrap();
    store
}

#[tokio::test]
async fn rows_come_back_as_they_went_in_also_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("banger.db");
    drop(filled(&path).await);
    let store = Store::open(&path).unwrap();
    assert_eq!(store.read(vms::list).await.unwrap().0, [vm("v1", "dev")]);
    assert_eq!(store.read(kernels::list).await.unwrap(), [kernel("k")]);
    assert_eq!(store.read(images::list).await.unwrap(), [image("i1", "debian")]);
}

#[tokio::test]
async fn names_are_unique_and_the_refused_job_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(&dir.path().join("banger.db")).await;
    let refused = store
        .write(|tx| {
            ledger::insert(tx, "v2", "{}", Timestamp::UNIX_EPOCH)?;
            vms::insert(tx, &vm("v2", "dev"))
        })
        .await;
    assert!(
        matches!(refused, Err(StoreError::Exists { what: "machine", .. })),
        "{refused:?}"
    );
    assert!(store.read(ledger::list).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_is_in_use_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(&dir.path().join("banger.db")).await;
    match store.write(|tx| images::remove(tx, "i1")).await {
        Err(StoreError::InUse { by, .. }) => assert_eq!(by, ["dev"]),
        other => panic!("{other:?}"),
    }
    match store.write(|tx| kernels::remove(tx, "k")).await {
        Err(StoreError::InUse { by, .. }) => assert_eq!(by, ["image debian", "machine dev"]),
        other => panic!("{other:?}"),
    }
    store.write(|tx| vms::remove(tx, "v1")).await.unwrap();
    store.write(|tx| images::remove(tx, "i1")).await.unwrap();
    store.write(|tx| kernels::remove(tx, "k")).await.unwrap();
}

#[tokio::test]
async fn a_machine_needs_its_image() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(&dir.path().join("banger.db")).await;
    let mut row = vm("v2", "other");
    row.image = "nothing".into();
    let refused = store.write(move |tx| vms::insert(tx, &row)).await;
    assert!(
        matches!(refused, Err(StoreError::Missing { what: "image", .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn the_ledger_keeps_the_order_of_making() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(&dir.path().join("banger.db")).await;
    for object in ["a", "b", "c"] {
        store
            .note(move |tx| ledger::insert(tx, "v1", object, Timestamp::UNIX_EPOCH))
            .await
            .unwrap();
    }
    let objects: Vec<String> = store
        .read(|tx| ledger::of_owner(tx, "v1"))
        .await
        .unwrap()
        .into_iter()
        .map(|r| r.object)
        .collect();
    assert_eq!(objects, ["c", "b", "a"]);
}

#[tokio::test]
async fn many_writers_at_once_are_all_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(&dir.path().join("banger.db")).await;
    let tasks: Vec<_> = (0..500)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                store
                    .note(move |tx| ledger::insert(tx, "v1", &n.to_string(), Timestamp::UNIX_EPOCH))
                    .await
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(store.read(ledger::list).await.unwrap().len(), 500);
}

#[tokio::test]
async fn an_unreadable_row_is_named_and_hides_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(&dir.path().join("banger.db")).await;
    store
        .write(|tx| {
            vms::insert(tx, &vm("v2", "odd"))?;
            tx.execute("UPDATE vms SET labels = 'not JSON' WHERE id = 'v2'", [])?;
            Ok(())
        })
        .await
        .unwrap();
    let (good, bad) = store.read(vms::list).await.unwrap();
    assert_eq!(good, [vm("v1", "dev")]);
    assert_eq!(bad.len(), 1);
    assert_eq!(bad[0].id.as_deref(), Some("v2"));
    assert!(matches!(
        bad[0].error,
        StoreError::Corrupt { column: "labels", .. }
    ));
}

#[tokio::test]
async fn an_update_changes_all_but_phase_and_creation() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(&dir.path().join("banger.db")).await;
    let changed = vms::VmRow {
        name: "other".into(),
        vcpus: 4,
        memory_mib: 1024,
        disk: 1 << 34,
        labels: std::collections::BTreeMap::new(),
        ephemeral: false,
        generation: 4,
        nat: true,
        autostart: false,
        restart: "always".into(),
        expires: None,
        allow: "host".into(),
        ..vm("v1", "dev")
    };
    let row = changed.clone();
    store.write(move |tx| vms::update(tx, &row)).await.unwrap();
    assert_eq!(store.read(vms::list).await.unwrap().0, [changed]);
    // A taken name and an unknown machine are refused.
    store.write(|tx| vms::insert(tx, &vm("v2", "dev"))).await.unwrap();
    let taken = vms::VmRow {
        name: "other".into(),
        ..vm("v2", "dev")
    };
    let refused = store.write(move |tx| vms::update(tx, &taken)).await;
    assert!(matches!(refused, Err(StoreError::Exists { .. })), "{refused:?}");
    let unknown = store.write(|tx| vms::update(tx, &vm("v3", "new"))).await;
    assert!(matches!(unknown, Err(StoreError::Missing { .. })), "{unknown:?}");
}

#[tokio::test]
async fn a_fact_is_replaced_and_the_old_one_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("banger.db")).unwrap();
    let first = store
        .write(|tx| banger_store::facts::replace(tx, "boot_id", "a"))
        .await
        .unwrap();
    let second = store
        .write(|tx| banger_store::facts::replace(tx, "boot_id", "b"))
        .await
        .unwrap();
    assert_eq!((first, second.as_deref()), (None, Some("a")));
}

#[tokio::test]
async fn an_address_stays_with_its_machine_and_is_not_given_again_while_others_are_free() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(&dir.path().join("banger.db")).await;
    let (first, last) = (Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 4));
    let machine = |id: &'static str| {
        let store = store.clone();
        async move {
            store
                .write(move |tx| {
                    if id != "v1" {
                        vms::insert(tx, &vm(id, id))?;
                    }
                    leases::take(tx, id, first, last)
                })
                .await
        }
    };
    let octet = |address: Ipv4Addr| address.octets()[3];
    assert_eq!(octet(machine("v1").await.unwrap()), 2);
    assert_eq!(octet(machine("v2").await.unwrap()), 3);
    store.write(|tx| vms::remove(tx, "v2")).await.unwrap();
    assert_eq!(octet(machine("v3").await.unwrap()), 4);
    assert_eq!(octet(machine("v4").await.unwrap()), 3);
    // None is left: the machine is not there either.
    let full = machine("v5").await.unwrap_err();
    assert!(matches!(full, StoreError::Exhausted { taken: 3, .. }), "{full:?}");
    assert_eq!(full.to_string(), "no address is free: all 3 are taken");
    assert_eq!(store.read(vms::list).await.unwrap().0.len(), 3);
    let all = store.read(leases::list).await.unwrap();
    let all: Vec<_> = all
        .iter()
        .map(|lease| (lease.vm.as_str(), octet(lease.address)))
        .collect();
    assert_eq!(all, [("v1", 2), ("v4", 3), ("v3", 4)]);
    assert_eq!(store.read(|tx| leases::find(tx, "v3")).await.unwrap(), Some(last));
    assert_eq!(store.read(|tx| leases::find(tx, "v2")).await.unwrap(), None);
}

fn publication(vm: &str, protocol: &str, host: &str, guest_port: u16) -> publications::PublicationRow {
    publications::PublicationRow {
        vm: vm.into(),
        protocol: protocol.into(),
        host: host.parse().unwrap(),
        guest_port,
    }
}

#[tokio::test]
async fn a_port_of_the_host_leads_to_one_machine() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(&dir.path().join("banger.db")).await;
    let publish = |row: publications::PublicationRow| store.write(move |tx| publications::insert(tx, &row));
    let web = publication("v1", "tcp", "127.0.0.1:8080", 80);
    publish(web.clone()).await.unwrap();
    // Again is fine; another protocol, address or family is another port.
    publish(web.clone()).await.unwrap();
    for other in ["127.0.0.2:8080", "[::]:8080"] {
        publish(publication("v1", "tcp", other, 81)).await.unwrap();
    }
    publish(publication("v1", "udp", "0.0.0.0:8080", 80))
        .await
        .unwrap();
    for (protocol, host, held) in [
        ("tcp", "127.0.0.1:8080", "127.0.0.1:8080"),
        ("tcp", "0.0.0.0:8080", "127.0.0.1:8080"),
        ("tcp", "[::1]:8080", "[::]:8080"),
        ("udp", "127.0.0.1:8080", "0.0.0.0:8080"),
    ] {
        let taken = publish(publication("v1", protocol, host, 9)).await.unwrap_err();
        let says = format!("port {host}/{protocol} is taken: {held}/{protocol} leads to machine \"dev\"");
        assert_eq!(taken.to_string(), says);
    }
    let gone = web.clone();
    store
        .write(move |tx| publications::remove(tx, &gone))
        .await
        .unwrap();
    let (left, bad) = store.read(publications::list).await.unwrap();
    assert_eq!((left.len(), bad.len()), (3, 0));
    assert!(!left.contains(&web));
    let nobody = publish(publication("v9", "tcp", "127.0.0.1:1", 1)).await;
    assert!(
        matches!(nobody, Err(StoreError::Missing { what: "machine", .. })),
        "{nobody:?}"
    );
    // They go with their machine.
    store.write(|tx| vms::remove(tx, "v1")).await.unwrap();
    assert_eq!(store.read(publications::list).await.unwrap().0, []);
}

#[tokio::test]
async fn an_unreadable_publication_is_named_and_hides_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(&dir.path().join("banger.db")).await;
    let web = publication("v1", "tcp", "127.0.0.1:8080", 80);
    let row = web.clone();
    store
        .write(move |tx| {
            publications::insert(tx, &row)?;
            tx.execute(
                "INSERT INTO publications VALUES ('v1', 'tcp', 'everywhere', 8081, 81), ('v1', 'tcp', '127.0.0.1', 8082, 70000)",
                [],
            )?;
            Ok(())
        })
        .await
        .unwrap();
    let (good, bad) = store.read(publications::list).await.unwrap();
    assert_eq!(good, std::slice::from_ref(&web));
    let named: Vec<_> = bad
        .iter()
        .map(|bad| (bad.vm.as_deref(), bad.says.as_str()))
        .collect();
    assert_eq!(
        named,
        [
            (Some("v1"), "tcp everywhere 8081 81"),
            (Some("v1"), "tcp 127.0.0.1 8082 70000")
        ]
    );
    // Nor are they in the way of others, but for the place that one of them has.
    let publish = |host: &str| {
        let row = publication("v1", "tcp", host, 80);
        store.write(move |tx| publications::insert(tx, &row))
    };
    publish("127.0.0.1:8081").await.unwrap();
    publish("127.0.0.1:8080").await.unwrap();
    let taken = publish("0.0.0.0:8082").await.unwrap_err();
    assert_eq!(
        taken.to_string(),
        "port 0.0.0.0:8082/tcp is taken: 127.0.0.1:8082/tcp leads to machine \"dev\""
    );
}

#[tokio::test]
async fn an_image_has_any_number_of_names() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(&dir.path().join("banger.db")).await;
    let find = |reference: &'static str| store.read(move |tx| images::find(tx, reference));
    let give = |name: &'static str, id: &'static str| store.write(move |tx| images::give_name(tx, name, id));
    assert_eq!(give("debian:12", "i1").await.unwrap(), None);
    assert_eq!(give("debian:12", "i1").await.unwrap(), None, "again");
    let names = ["debian", "debian:12"];
    for reference in ["debian", "debian:12", "i1"] {
        assert_eq!(
            find(reference).await.unwrap().unwrap().names,
            names,
            "{reference}"
        );
    }
    assert_eq!(find("debian:1").await.unwrap(), None);
    // A name goes to another image; what had it keeps its others.
    let next = images::ImageRow {
        names: Vec::new(),
        digest: Some("sha256:00aa".into()),
        index_digest: Some("sha256:00bb".into()),
        config: Some("{}".into()),
        sha256: "cc".into(),
        ..image("i2", "")
    };
    let row = next.clone();
    store
        .write(move |tx| images::insert(tx, &row, &[]))
        .await
        .unwrap();
    assert_eq!(find("i2").await.unwrap(), Some(next));
    assert_eq!(give("debian", "i2").await.unwrap().unwrap().names, ["debian:12"]);
    assert_eq!(give("debian:12", "i2").await.unwrap().unwrap().names, [""; 0]);
    assert_eq!(find("debian").await.unwrap().unwrap().id, "i2");
    let listed: Vec<_> = store.read(images::list).await.unwrap();
    let listed: Vec<_> = listed.iter().map(images::ImageRow::name).collect();
    assert_eq!(listed, ["debian", "i1"], "those without a name come last");
    // What has a name cannot be made another time.
    let taken = store
        .write(|tx| images::insert(tx, &image("i3", "debian"), &[]))
        .await;
    assert!(
        matches!(taken, Err(StoreError::Exists { what: "image", .. })),
        "{taken:?}"
    );
    // A machine goes on with what it has, under the name that it knows.
    match store.write(|tx| images::remove(tx, "i1")).await {
        Err(StoreError::InUse { name, by, .. }) => {
            assert_eq!((name.as_str(), by), ("i1", vec!["dev".to_owned()]));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(store.read(vms::list).await.unwrap().0[0].image_name, "debian");
    assert!(store.write(|tx| images::take_name(tx, "debian")).await.unwrap());
    assert!(!store.write(|tx| images::take_name(tx, "debian")).await.unwrap());
    assert_eq!(find("debian").await.unwrap(), None);
    assert_eq!(find("i2").await.unwrap().unwrap().names, ["debian:12"]);
    store.write(|tx| images::remove(tx, "i2")).await.unwrap();
    assert_eq!(find("debian:12").await.unwrap(), None);
}

#[tokio::test]
async fn an_image_is_a_users_file_until_it_is_ours() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(&dir.path().join("banger.db")).await;
    let get = async || store.read(|tx| images::get(tx, "i2")).await.unwrap().unwrap();
    let file = images::RegisteredFile {
        path: "/home/me/root.ext4".into(),
        inode: u64::MAX,
        modified: -1,
    };
    let row = images::ImageRow {
        registered: Some(file.clone()),
        ..image("i2", "mine")
    };
    let entered = row.clone();
    let entering = store.write(move |tx| images::insert(tx, &entered, &[]));
    entering.await.unwrap();
    assert_eq!(get().await, row);
    let file = images::RegisteredFile { modified: 7, ..file };
    let again = file.clone();
    let setting = store.write(move |tx| images::set_registered(tx, "i2", &again));
    setting.await.unwrap();
    assert_eq!(get().await.registered, Some(file.clone()));
    store.write(|tx| images::set_managed(tx, "i2", 77)).await.unwrap();
    assert_eq!((get().await.registered, get().await.used), (None, 77));
    for gone in [
        store.write(|tx| images::set_managed(tx, "i9", 1)).await,
        store
            .write(move |tx| images::set_registered(tx, "i9", &file))
            .await,
    ] {
        assert!(
            matches!(gone, Err(StoreError::Missing { what: "image", .. })),
            "{gone:?}"
        );
    }
}

#[tokio::test]
async fn images_are_found_by_the_beginning_of_a_digest() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(&dir.path().join("banger.db")).await;
    for (id, root, digest, index) in [
        ("i2", "aa11", Some("sha256:bb22"), None),
        ("i3", "aa12", Some("sha256:bb23"), Some("sha256:cc33")),
    ] {
        let row = images::ImageRow {
            sha256: root.into(),
            digest: digest.map(Into::into),
            index_digest: index.map(Into::into),
            ..image(id, id)
        };
        store
            .write(move |tx| images::insert(tx, &row, &[]))
            .await
            .unwrap();
    }
    for (prefix, expected) in [
        ("sha256:bb", &["i2", "i3"][..]),
        ("sha256:bb23", &["i3"]),
        ("sha256:cc", &["i3"]),
        ("sha256:aa11", &["i2"]),
        ("sha256:00", &["i1"]),
        ("sha256:dd", &[]),
    ] {
        let found = store.read(move |tx| images::by_digest(tx, prefix)).await.unwrap();
        let mut found: Vec<_> = found.iter().map(|row| row.id.as_str()).collect();
        found.sort_unstable();
        assert_eq!(found, expected, "{prefix}");
    }
}

#[tokio::test]
async fn blobs_are_counted_once_and_shared_ones_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(&dir.path().join("banger.db")).await;
    let blob = |digest: &str, size| images::BlobRow {
        digest: digest.into(),
        size,
    };
    // The same layer twice, as an empty one often is.
    let first = vec![
        blob("sha256:m1", 1),
        blob("sha256:base", 10),
        blob("sha256:base", 10),
    ];
    let second = vec![
        blob("sha256:m2", 1),
        blob("sha256:base", 10),
        blob("sha256:own", 100),
    ];
    for (id, blobs) in [("i2", &first), ("i3", &second)] {
        let blobs = blobs.clone();
        store
            .write(move |tx| images::insert(tx, &image(id, id), &blobs))
            .await
            .unwrap();
    }
    let sizes = |id: &'static str| store.read(move |tx| images::blob_sizes(tx, id));
    assert_eq!(sizes("i1").await.unwrap(), (0, 0));
    assert_eq!(sizes("i2").await.unwrap(), (11, 10));
    assert_eq!(sizes("i3").await.unwrap(), (111, 10));
    assert_eq!(store.read(|tx| images::blobs(tx, "i2")).await.unwrap(), first);
    let in_use = async || store.read(images::blobs_in_use).await.unwrap().len();
    assert_eq!(in_use().await, 4);
    store.write(|tx| images::remove(tx, "i2")).await.unwrap();
    assert_eq!(in_use().await, 3);
    assert_eq!(sizes("i3").await.unwrap(), (111, 0));
}
