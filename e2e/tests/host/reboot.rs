//! The host boots again.

use e2e::Host;

pub(crate) fn steps(host: &Host<'_>) {
    host.banger(["vm", "set", "mapped", "--autostart"]).ok();
    host.step("reboot", || host.reboot());
    host.step("machines with autostart come back", || {
        host.wait(
            "the machine runs again",
            "[ $(banger vm show mapped --output json | tr -d ' \\n' | grep -c '\"state\":\"running\"') = 1 ]",
        );
        assert_eq!(host.vm_sh("mapped", "cat /etc/witness"), "kept");
        for name in ["over", "ref"] {
            assert_eq!(host.vm(name)["state"], "stopped");
        }
    });
}
