//! Machines on device-mapper, of a small image and of a large one: everything about their disks takes the same time.
//!
//! This is where `make bench` has its figures of this kind from, in a host that is emulated: the ratio is what counts. The
//! clock runs in the host itself, around the command line, because a call from outside takes longer than some of them.

use std::collections::BTreeMap;

use e2e::Host;

use crate::disks;

/// Images, and the sizes of their file systems.
const IMAGES: [(&str, &str); 2] = [("small", "300M"), ("large", "4G")];
const VERBS: [&str; 4] = ["create", "start", "reset", "delete"];
const ROUNDS: usize = 5;
/// Rounds that have a start as well, which takes longest by far.
const STARTS: usize = 3;
/// Medians of an emulated host, which shares its processors with other tests; an image that was copied, or read once, would
/// be above ten.
const AT_MOST: f64 = 3.0;

pub(crate) fn steps(host: &Host<'_>) {
    host.step("a small image and a large one", || {
        for (name, size) in IMAGES {
            image(host, name, size);
        }
    });
    host.step("machines of both on device-mapper", || {
        // Ending a VMM within moments of its start hangs now and then, for good, the emulation of virtualization that the
        // host runs on. Nothing here is about virtualization.
        host.sh("mv /dev/kvm /dev/kvm.aside; systemctl restart bangerd");
        compare(&measured(host));
        host.sh("mv /dev/kvm.aside /dev/kvm; systemctl restart bangerd");
    });
    host.step("no device of theirs is left", || {
        for (name, _) in IMAGES {
            host.banger(["image", "rm", name]).ok();
        }
        disks::assert_no_devices(host);
    });
}

/// Makes an image of an empty file system of that size: sparse, so that it costs nothing to make.
///
/// Registering computes a digest, which takes minutes for 4 GiB in an emulated host. So a small file is registered and
/// promoted, and the real one put in the place of the copy.
fn image(host: &Host<'_>, name: &str, size: &str) {
    host.sh(&format!(
        "cd /srv; mke2fs -q -t ext4 {name}.ext4 8M; banger image register {name} {name}.ext4 --quiet; \
         banger image promote {name} --quiet; rm {name}.ext4; \
         cd /var/lib/banger; mke2fs -q -t ext4 -E lazy_itable_init=1,lazy_journal_init=1 {name}.ext4 {size}"
    ));
    let shown = host.banger(["image", "show", name, "--output", "json"]).json();
    let id = shown["id"].as_str().expect("an id");
    host.sh(&format!(
        "cd /var/lib/banger; mv {name}.ext4 images/{id}/rootfs.ext4"
    ));
}

/// Seconds of each verb for each image.
fn measured(host: &Host<'_>) -> BTreeMap<(String, String), Vec<f64>> {
    // A start is taken up to where all its disks are there and the VMM is run, and then taken back: what boots, boots as
    // long as it boots.
    let script = format!(
        "timed() {{ local verb=$1 began=$EPOCHREALTIME; shift; \"$@\" >/dev/null; said $verb $began; }}
         said() {{ echo $1 $image $2 $EPOCHREALTIME; }}
         for round in $(seq {ROUNDS}); do for image in small large; do
             timed create banger vm create made --quiet --system-disk dm --image $image --disk 5GiB --memory 128M
             if [ $round -le {STARTS} ]; then
                 token=$(ls /var/lib/banger/vms)
                 began=$EPOCHREALTIME end=$((EPOCHSECONDS + 60))
                 operation=$(banger vm start made --detach)
                 until [ -S /run/banger/$token/qmp.sock ]; do [ $EPOCHSECONDS -lt $end ]; done
                 said start $began
                 [ -e /dev/mapper/$token ]
                 banger op cancel $operation >/dev/null
             fi
             timed reset banger vm reset made --quiet --yes
             timed delete banger vm rm made --quiet
         done; done"
    );
    let mut samples = BTreeMap::<_, Vec<f64>>::new();
    for line in host.sh(&script).lines() {
        let mut words = line.split_whitespace();
        let mut word = || {
            words
                .next()
                .unwrap_or_else(|| panic!("a word is missing in {line:?}"))
        };
        let (verb, image) = (word().to_owned(), word().to_owned());
        let mut time = || word().parse::<f64>().expect("seconds");
        let (began, ended) = (time(), time());
        samples.entry((verb, image)).or_default().push(ended - began);
    }
    samples
}

fn compare(samples: &BTreeMap<(String, String), Vec<f64>>) {
    let median = |verb: &str, image: &str| {
        let mut samples = samples[&(verb.to_owned(), image.to_owned())].clone();
        assert!(samples.len() >= STARTS, "{verb}, {image}");
        samples.sort_by(f64::total_cmp);
        samples[samples.len() / 2]
    };
    for verb in VERBS {
        let (small, large) = (median(verb, "small"), median(verb, "large"));
        let ratio = large / small;
        println!("          {verb}, dm: 4 GiB {large:.3} s, 300 MiB {small:.3} s, {ratio:.2} ×");
        assert!(ratio < AT_MOST, "{verb}: {samples:?}");
    }
}
