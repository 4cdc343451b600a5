use proptest::prelude::*;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::*;
use crate::error::ErrorKind;

fn bytes() -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from)
}

fn frames() -> impl Strategy<Value = Frame> {
    prop_oneof![
        bytes().prop_map(Frame::Stdin),
        bytes().prop_map(Frame::Stdout),
        bytes().prop_map(Frame::Stderr),
        Just(Frame::StdinEof),
        (any::<u16>(), any::<u16>()).prop_map(|(rows, columns)| Frame::Resize { rows, columns }),
        any::<i32>().prop_map(Frame::Signal),
        bytes().prop_map(Frame::Data),
        Just(Frame::DataEof),
        any::<i32>().prop_map(|code| Frame::Exit(ExitStatus::Code(code))),
        any::<i32>().prop_map(|signal| Frame::Exit(ExitStatus::Signal(signal))),
        ".{0,40}"
            .prop_map(|message| Frame::Error(RpcError::new(ErrorKind::GuestRefused, message).hint("a hint"))),
        Just(Frame::End),
    ]
}

fn encode(frames: &[Frame]) -> BytesMut {
    let mut wire = BytesMut::new();
    for frame in frames {
        FrameCodec.encode(frame.clone(), &mut wire).unwrap();
    }
    wire
}

fn pair() -> (FrameStream, FrameStream) {
    let (a, b) = UnixStream::pair().unwrap();
    let stream = |socket: UnixStream| {
        let (read, write) = socket.into_split();
        FrameStream::new(read, write, BytesMut::new())
    };
    (stream(a), stream(b))
}

proptest! {
    #[test]
    fn frames_survive_the_wire_however_it_is_cut(
        sent in proptest::collection::vec(frames(), 0..12),
        cuts in proptest::collection::vec(1_usize..40, 1..40),
    ) {
        let mut wire = encode(&sent);
        let mut received = Vec::new();
        let mut buffer = BytesMut::new();
        for cut in cuts.iter().cycle() {
            buffer.extend_from_slice(&wire.split_to((*cut).min(wire.len())));
            while let Some(frame) = FrameCodec.decode(&mut buffer).unwrap() {
                received.push(frame);
            }
            if wire.is_empty() {
                break;
            }
        }
        prop_assert_eq!(received, sent);
        prop_assert!(FrameCodec.decode_eof(&mut buffer).unwrap().is_none());
    }

    #[test]
    fn any_bytes_are_frames_or_an_error(junk in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut buffer = BytesMut::from(junk.as_slice());
        while let Ok(Some(_)) = FrameCodec.decode(&mut buffer) {}
        // Nothing is reserved beyond the longest payload.
        prop_assert!(buffer.capacity() <= 4 * MAX_PAYLOAD);
    }

    #[test]
    fn a_cut_within_a_frame_is_told_from_an_end(frame in frames(), cut in any::<prop::sample::Index>()) {
        let wire = encode(&[frame]);
        let mut part = BytesMut::from(&wire[..cut.index(wire.len())]);
        let empty = part.is_empty();
        match FrameCodec.decode_eof(&mut part) {
            Ok(None) => prop_assert!(empty),
            Err(FrameError::Truncated) => prop_assert!(!empty),
            other => prop_assert!(false, "{other:?}"),
        }
    }
}

#[test]
fn hostile_lengths_are_refused_before_anything_is_allocated() {
    for kind in 1..=11_u8 {
        for length in [u32::MAX, 1 << 30, (1 << 20) + 1] {
            let mut wire = BytesMut::with_capacity(HEADER);
            wire.put_u8(kind);
            wire.put_u32(length);
            let refused = FrameCodec.decode(&mut wire);
            assert!(
                matches!(refused, Err(FrameError::Length { kind: k, length: l, .. }) if (k, l) == (kind, length))
            );
            assert!(
                wire.capacity() < 64,
                "kind {kind} of {length} bytes reserved {}",
                wire.capacity()
            );
        }
    }
    for (kind, length) in [(4_u8, 1_u32), (5, 3), (5, 5), (6, 0), (8, 1), (9, 4), (11, 1)] {
        let mut wire = BytesMut::new();
        wire.put_u8(kind);
        wire.put_u32(length);
        assert!(
            matches!(FrameCodec.decode(&mut wire), Err(FrameError::Length { .. })),
            "kind {kind} of {length}"
        );
    }
}

#[test]
fn unknown_kinds_and_contents_are_refused_at_once() {
    for kind in (0..=u8::MAX).filter(|kind| !(1..=11).contains(kind)) {
        let mut wire = BytesMut::from(&[kind][..]);
        assert!(matches!(FrameCodec.decode(&mut wire), Err(FrameError::UnknownKind(k)) if k == kind));
    }
    let mut exit = BytesMut::from(&[9, 0, 0, 0, 5, 2, 0, 0, 0, 0][..]);
    assert!(matches!(
        FrameCodec.decode(&mut exit),
        Err(FrameError::Content { kind: 9 })
    ));
    let mut error = BytesMut::from(&[10, 0, 0, 0, 2, b'{', b'}'][..]);
    assert!(matches!(
        FrameCodec.decode(&mut error),
        Err(FrameError::Content { kind: 10 })
    ));
}

/// Bytes that other implementations can be checked against.
#[test]
fn the_wire_is_as_documented() {
    let wire = encode(&[
        Frame::Stdin(Bytes::from_static(b"hi")),
        Frame::Resize {
            rows: 24,
            columns: 80,
        },
        Frame::Signal(15),
        Frame::Exit(ExitStatus::Code(3)),
        Frame::Exit(ExitStatus::Signal(9)),
        Frame::End,
    ]);
    let expected: &[&[u8]] = &[
        b"\x01\0\0\0\x02hi",
        b"\x05\0\0\0\x04\0\x18\0\x50",
        b"\x06\0\0\0\x04\0\0\0\x0f",
        b"\x09\0\0\0\x05\0\0\0\0\x03",
        b"\x09\0\0\0\x05\x01\0\0\0\x09",
        b"\x0b\0\0\0\0",
    ];
    assert_eq!(wire, expected.concat());
}

#[test]
fn an_oversized_error_is_cut_to_a_frame() {
    let mut error = RpcError::new(ErrorKind::Internal, "é".repeat(MAX_PAYLOAD));
    error.details = vec!["x".repeat(MAX_PAYLOAD)];
    let mut wire = encode(&[Frame::Error(error)]);
    let Some(Frame::Error(error)) = FrameCodec.decode(&mut wire).unwrap() else {
        panic!("no error")
    };
    assert!(error.message.starts_with("ééé") && error.details.is_empty());
    assert!(wire.is_empty());
}

#[tokio::test]
async fn long_data_goes_as_several_frames() {
    let (a, mut b) = pair();
    let (_reader, mut writer) = a.split();
    let data = Bytes::from(
        (0..3 * MAX_PAYLOAD + 7)
            .map(|n| n.to_le_bytes()[0])
            .collect::<Vec<u8>>(),
    );
    let sent = data.clone();
    let sending = tokio::spawn(async move {
        writer.send(Frame::Data(sent)).await.unwrap();
        writer.send(Frame::DataEof).await.unwrap();
        writer
    });
    let mut received = Vec::new();
    loop {
        match b.next().await.unwrap() {
            Some(Frame::Data(part)) => {
                assert!(part.len() <= MAX_PAYLOAD);
                received.extend_from_slice(&part);
            }
            Some(Frame::DataEof) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(received, data);
    drop(sending.await.unwrap());
    assert!(b.next().await.unwrap().is_none());
}

#[tokio::test]
async fn a_send_that_is_dropped_keeps_the_frames_whole() {
    let (mut a, mut b) = pair();
    let long = Bytes::from(vec![7; MAX_PAYLOAD]);
    // The socket takes a part of it, nobody reads the rest.
    let stuck = tokio::time::timeout(
        std::time::Duration::from_millis(50),
        a.send(Frame::Data(long.clone())),
    )
    .await;
    assert!(stuck.is_err());
    let sending = tokio::spawn(async move {
        a.send(Frame::End).await.unwrap();
        a
    });
    assert_eq!(b.next().await.unwrap(), Some(Frame::Data(long)));
    assert_eq!(b.next().await.unwrap(), Some(Frame::End));
    sending.await.unwrap();
}

#[tokio::test]
async fn a_connection_cut_within_a_frame_is_an_error() {
    let (mut a, b) = UnixStream::pair().unwrap();
    let (read, write) = b.into_split();
    // As when the bytes came together with the line that opened the stream.
    let mut stream = FrameStream::new(read, write, encode(&[Frame::StdinEof]));
    a.write_all(b"\x01\0\0\0\x02h").await.unwrap();
    drop(a);
    assert_eq!(stream.next().await.unwrap(), Some(Frame::StdinEof));
    assert!(matches!(stream.next().await, Err(FrameError::Truncated)));
}

#[tokio::test]
async fn the_end_is_seen_behind_unread_frames() {
    use std::time::Duration;
    let (mut a, b) = pair();
    let (mut reader, _writer) = b.split();
    for _ in 0..3 {
        a.send(Frame::Data(Bytes::from_static(b"unread"))).await.unwrap();
    }
    assert!(matches!(reader.next().await.unwrap(), Some(Frame::Data(_))));
    let early = tokio::time::timeout(Duration::from_millis(50), reader.closed()).await;
    assert!(early.is_err(), "open, and nothing but data has come");
    drop(a);
    tokio::time::timeout(Duration::from_secs(10), reader.closed())
        .await
        .unwrap();
    assert!(matches!(reader.next().await.unwrap(), Some(Frame::Data(_))));
}
