//! Who reaches a daemon, who is refused, and what the client says of it.

use std::io;
use std::path::PathBuf;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;

use super::harness::{Running, limits, op, start, vm, within};
use crate::client::{Client, ClientError, Unreachable};
use crate::error::ErrorKind;
use crate::server::Access;
use crate::types::VmPing;

#[tokio::test]
async fn the_client_says_why_it_cannot_reach_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let reason = async |path: PathBuf| match Client::new(path).op_show(op("x")).await {
        Err(ClientError::Unreachable { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(dir.path().join("none")).await, Unreachable::NoSocket);
    let dead = dir.path().join("dead");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    assert_eq!(reason(dead).await, Unreachable::Refused);
    assert_eq!(
        reason(dir.path().join("x".repeat(120))).await,
        Unreachable::PathTooLong
    );
}

#[tokio::test]
async fn the_client_does_not_take_another_server_for_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let answers = [
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "{}\n",
        "{\"jsonrpc\":\"2.0\",\"result\":{},\"id\":2}\n",
    ];
    let serving = tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        let (stream, _) = listener.accept().await.unwrap();
        BufReader::new(stream)
            .read_line(&mut String::new())
            .await
            .unwrap();
        // As a daemon that is killed leaves it: nothing read, which resets the peer.
        let (stream, _) = listener.accept().await.unwrap();
        stream.readable().await.unwrap();
    });
    let client = Client::new(&path);
    for answer in answers {
        match within(client.op_show(op("x"))).await {
            Err(ClientError::Protocol { .. }) => {}
            other => panic!("{answer:?}: {other:?}"),
        }
    }
    for kind in [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset] {
        match within(client.op_show(op("x"))).await {
            Err(ClientError::Broken { source, .. }) => {
                assert_eq!(source.kind(), kind);
                assert_eq!(source.to_string(), "the daemon closed the connection");
            }
            other => panic!("{kind}: {other:?}"),
        }
    }
    serving.await.unwrap();
}

/// Runs a client as another user, in a thread that has dropped its rights.
fn as_user(path: PathBuf, uid: u32, gid: u32, groups: &[u32]) -> Result<VmPing, ClientError> {
    use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let groups: Vec<Gid> = groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
    let thread = std::thread::spawn(move || {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        set_thread_groups(&groups).unwrap();
        set_thread_res_gid(gid, gid, gid).unwrap();
        set_thread_res_uid(uid, uid, uid).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(Client::new(path).vm_ping(vm("a")))
    });
    thread.join().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_are_refused_and_members_of_the_group_are_not() {
    use std::os::unix::fs::PermissionsExt;
    if !rustix::process::geteuid().is_root() {
        testkit::skip::<()>("needs root to become another user");
        return;
    }
    const GROUP: u32 = 54321;
    const OTHER: u32 = 54322;
    let open = |server: &Running, mode| {
        std::fs::set_permissions(server.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::set_permissions(&server.path, PermissionsExt::from_mode(mode)).unwrap();
        server.path.clone()
    };
    let server = start(
        limits(),
        Access {
            owner: 0,
            group: Some(GROUP),
        },
    );

    // The file's mode is the first wall.
    let path = open(&server, 0o600);
    let Err(ClientError::Unreachable { reason, .. }) = as_user(path, OTHER, OTHER, &[]) else {
        panic!("let in")
    };
    assert_eq!(reason, Unreachable::Permission);

    // The peer's credentials are the second.
    let path = open(&server, 0o666);
    for groups in [&[][..], &[OTHER], &(60000..60200).collect::<Vec<_>>()] {
        let Err(ClientError::Rpc(error)) = as_user(path.clone(), OTHER, OTHER, groups) else {
            panic!("let in")
        };
        assert_eq!(error.kind, ErrorKind::PermissionDenied, "{error:?}");
    }
    let many: Vec<u32> = (60000..60200).chain([GROUP]).collect();
    for (gid, groups) in [(GROUP, &[][..]), (OTHER, &[GROUP]), (OTHER, &many)] {
        let ping = as_user(path.clone(), OTHER, gid, groups).unwrap();
        assert_eq!(
            (ping.latency_microseconds, ping.agent_version),
            (OTHER.into(), gid.to_string())
        );
    }
    server.stop().await;

    let server = start(
        limits(),
        Access {
            owner: OTHER,
            group: None,
        },
    );
    let path = open(&server, 0o666);
    assert!(as_user(path.clone(), OTHER, OTHER, &[]).is_ok());
    assert!(as_user(path, GROUP, GROUP, &[]).is_err());
    // Root may always.
    assert!(server.client().vm_ping(vm("a")).await.is_ok());
    server.stop().await;
}
