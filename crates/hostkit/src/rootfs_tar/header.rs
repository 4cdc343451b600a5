//! The parts of an entry's headers: names, checksum, and the extended headers of GNU and pax that may come before it.

use super::sparse::PaxSparse;
use super::{DEPTH_LIMIT, PATH_LIMIT, RECORD, XATTR_LIMIT};

const TOO_LONG: &str = "its name is too long";

/// What the extended headers before an entry say of it.
#[derive(Debug, Default)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<u64>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Option<PaxSparse>,
    pub(super) seen: bool,
}

/// [`clean`] for the entries of layers, whose names some tools begin with a slash: all runtimes take them from the top.
pub(super) fn clean_in_layer(name: &[u8]) -> Result<Vec<u8>, &'static str> {
    let slashes = name.iter().take_while(|byte| **byte == b'/').count();
    match name.get(slashes..) {
        Some(b"") if slashes > 0 => Ok(Vec::new()),
        rest => clean(rest.unwrap_or_default()),
    }
}

/// Takes a name apart and puts it together again as `a/b/c`, or says what is wrong with it.
pub(super) fn clean(name: &[u8]) -> Result<Vec<u8>, &'static str> {
    if name.starts_with(b"/") {
        return Err("its name is absolute");
    }
    if name.is_empty() || name.contains(&0) {
        return Err("it has no proper name");
    }
    let mut path = Vec::with_capacity(name.len().min(PATH_LIMIT));
    let mut depth = 0;
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("its name leads upwards"),
            _ if part.len() > 255 => return Err(TOO_LONG),
            _ => {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(part);
                depth += 1;
            }
        }
        if depth > DEPTH_LIMIT || path.len() > PATH_LIMIT {
            return Err(TOO_LONG);
        }
    }
    Ok(path)
}

/// Insists that a path that symbolic links led to is no longer than one that an archive may spell out.
pub(super) fn check_length(path: &[u8]) -> Result<(), &'static str> {
    let depth = path.iter().filter(|byte| **byte == b'/').count() + 1;
    if depth > DEPTH_LIMIT || path.len() > PATH_LIMIT {
        Err(TOO_LONG)
    } else {
        Ok(())
    }
}

/// Pax records are `LENGTH KEY=VALUE\n`, where the length counts all of that.
pub(super) fn parse_pax(mut records: &[u8], extended: &mut Extended) -> Result<(), &'static str> {
    while !records.is_empty() {
        let bad = "bad pax record";
        let space = records
            .iter()
            .take(20)
            .position(|byte| *byte == b' ')
            .ok_or(bad)?;
        let (len, _) = records.split_at(space);
        let len: usize = std::str::from_utf8(len)
            .ok()
            .and_then(|len| len.parse().ok())
            .ok_or(bad)?;
        let record = records
            .get(space + 1..len)
            .and_then(|record| record.strip_suffix(b"\n"))
            .ok_or(bad)?;
        records = records.get(len..).ok_or(bad)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or(bad)?;
        let (key, value) = record.split_at(equals);
        let value = value.get(1..).unwrap_or_default();
        let number = || {
            std::str::from_utf8(value)
                .ok()
                .and_then(|value| value.parse::<u64>().ok())
        };
        match key {
            b"path" => extended.path = Some(value.to_vec()),
            b"linkpath" => extended.link = Some(value.to_vec()),
            b"size" => extended.size = Some(number().ok_or("bad size")?),
            b"uid" => extended.uid = Some(number().ok_or("bad owner")?),
            b"gid" => extended.gid = Some(number().ok_or("bad group")?),
            b"mtime" => {
                let seconds = value.split(|byte| *byte == b'.').next().unwrap_or_default();
                let seconds = std::str::from_utf8(seconds)
                    .ok()
                    .and_then(|text| text.parse::<i64>().ok());
                extended.mtime = Some(u64::try_from(seconds.ok_or("bad time")?).unwrap_or(0));
            }
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.".as_slice()) {
                    extended.sparse.get_or_insert_default().record(key, value)?;
                } else if let Some(name) = key.strip_prefix(b"SCHILY.xattr.".as_slice())
                    && is_kept(name)
                {
                    extended.xattrs.retain(|(before, _)| before != name);
                    extended.xattrs.push((name.to_vec(), value.to_vec()));
                    // On the way, so that there are never many to look through.
                    if xattrs_size(&extended.xattrs) > XATTR_LIMIT {
                        return Err("too large extended attributes");
                    }
                }
            }
        }
    }
    Ok(())
}

/// What attributes take on the disk: their headers, names and values.
fn xattrs_size(xattrs: &[(Vec<u8>, Vec<u8>)]) -> usize {
    xattrs
        .iter()
        .map(|(name, value)| name.len() + value.len() + 20)
        .sum()
}

/// Attributes that belong to a file wherever it is: users' and capabilities. Others belong to the host that made the
/// archive (labels of its security policy) or would change what an overlay on top shows (`trusted.overlay.*`).
fn is_kept(name: &[u8]) -> bool {
    name == b"security.capability"
        || (name.starts_with(b"user.") && name.len() > 5 && name.len() < 255 && !name.contains(&0))
}

pub(super) fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
    bytes
}

/// The sum of all bytes, with those of the checksum itself taken as spaces.
pub(super) fn checksum(header: &[u8; RECORD]) -> u32 {
    header
        .iter()
        .enumerate()
        .map(|(at, byte)| {
            if (148..156).contains(&at) {
                32
            } else {
                u32::from(*byte)
            }
        })
        .sum()
}

pub(super) fn show(name: &[u8]) -> String {
    let shown: String = String::from_utf8_lossy(name).chars().take(200).collect();
    if shown.is_empty() { ".".to_owned() } else { shown }
}
