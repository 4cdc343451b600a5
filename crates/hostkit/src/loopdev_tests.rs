use std::os::unix::fs::FileExt;

use super::*;

/// Root, and loop devices that can be had; says so when not.
fn usable() -> bool {
    if !testkit::is_root() {
        return false;
    }
    match File::open("/dev/loop-control") {
        Ok(_) => true,
        Err(error) => testkit::skip::<()>(&format!("/dev/loop-control: {error}")).is_some(),
    }
}

/// Detaches what the test attached, however it ends.
struct Detached(String);

impl Drop for Detached {
    fn drop(&mut self) {
        detach(&self.0).unwrap();
    }
}

fn mark(role: &str) -> Detached {
    Detached(format!("bgt-{}-{role}", std::process::id()))
}

fn read(device: &Attached, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    File::open(device.path())
        .unwrap()
        .read_exact_at(&mut bytes, 0)
        .unwrap();
    bytes
}

#[test]
fn marks_survive_the_kernels_field_and_bad_ones_are_refused() {
    for good in ["bgrabcdefghij-base@0123456789abcdef", "x", &"y".repeat(MARK)] {
        assert_eq!(decode(&encode(good).unwrap()), good);
    }
    for bad in [String::new(), "y".repeat(MARK + 1), "a\0b".to_owned()] {
        assert!(matches!(encode(&bad), Err(LoopError::Mark { .. })), "{bad:?}");
    }
    assert_eq!(number_of("loop7"), Some(7));
    for other in ["loop", "loop-control", "loop7p1", "sda", "loop-1"] {
        assert_eq!(number_of(other), None, "{other}");
    }
}

#[test]
fn one_file_twice_is_told_apart_by_its_marks() {
    if !usable() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("disk");
    std::fs::write(&file, vec![7; 1 << 20]).unwrap();
    let (base, cow) = (mark("base"), mark("cow"));
    let first = attach(&file, &base.0, Access::ReadOnly).unwrap();
    let second = attach(&file, &cow.0, Access::Direct).unwrap();
    assert_ne!(first.number, second.number);
    for device in [&first, &second] {
        let found = list().into_iter().find(|d| d.number == device.number).unwrap();
        assert_eq!((found.mark, found.backing), (device.mark.clone(), file.clone()));
        assert_eq!(read(device, 4096), [7; 4096]);
    }
    assert!(
        File::options().write(true).open(first.path()).is_err() || {
            let writer = File::options().write(true).open(first.path()).unwrap();
            writer
                .write_all_at(&[1; 4096], 0)
                .and_then(|()| writer.sync_all())
                .is_err()
        }
    );

    detach(&base.0).unwrap();
    let left = list();
    assert!(left.iter().all(|d| d.mark != base.0));
    assert!(left.iter().any(|d| d.mark == cow.0));
    // Again without harm.
    detach(&base.0).unwrap();
}

#[test]
fn what_is_written_arrives_and_a_grown_file_makes_a_grown_device() {
    if !usable() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("disk");
    let backing = File::create_new(&file).unwrap();
    backing.set_len(1 << 20).unwrap();
    let mark = mark("grown");
    let device = attach(&file, &mark.0, Access::Direct).unwrap();
    let writer = File::options().write(true).open(device.path()).unwrap();
    writer.write_all_at(b"written", 0).unwrap();
    writer.sync_all().unwrap();
    drop(writer);
    assert!(std::fs::read(&file).unwrap().starts_with(b"written"));

    backing.set_len(2 << 20).unwrap();
    resized(&device).unwrap();
    let size = std::fs::read_to_string(format!("/sys/block/loop{}/size", device.number)).unwrap();
    assert_eq!(size.trim(), ((2 << 20) / 512).to_string());
}

#[test]
fn a_device_in_use_is_gone_once_its_user_is() {
    if !usable() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("disk");
    std::fs::write(&file, vec![0; 1 << 20]).unwrap();
    let mark = mark("held");
    let device = attach(&file, &mark.0, Access::ReadOnly).unwrap();
    let held = File::open(device.path()).unwrap();
    let closer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        drop(held);
    });
    detach(&mark.0).unwrap();
    assert!(list().iter().all(|d| d.mark != mark.0));
    closer.join().unwrap();
}

#[test]
fn a_file_that_is_not_there_is_an_error_and_leaves_no_device() {
    if !usable() {
        return;
    }
    let mark = mark("none");
    let error = attach(Path::new("/no/such/file"), &mark.0, Access::ReadOnly).unwrap_err();
    assert!(matches!(error, LoopError::Open { .. }), "{error}");
    assert!(list().iter().all(|d| d.mark != mark.0));
}
