//! `--mount` of `RUN`: of its types only secrets, which are files that are there for one command.

use crate::recipe::SecretMount;
use crate::word::Word;

/// What is wrong with a mount.
pub(super) enum MountError {
    /// With the text.
    Wrong(String),
    /// Banger does not do it: what, and what to do instead.
    Unsupported(String, &'static str),
}

/// Reads `type=secret,id=…,target=…,required=…,mode=…`.
pub(super) fn mount(value: &str, escape: char) -> Result<SecretMount, MountError> {
    let fields: Vec<(&str, Option<&str>)> = value
        .split(',')
        .map(|field| match field.split_once('=') {
            Some((name, value)) => (name.trim(), Some(value)),
            None => (field.trim(), None),
        })
        .collect();
    let named = |wanted: &str| fields.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
    match named("type").and_then(|(_, value)| *value).unwrap_or("bind") {
        "secret" => {}
        "cache" => {
            return Err(unsupported(
                "cache",
                "drop it: the step works without, and its result is cached as a whole",
            ));
        }
        "bind" => {
            return Err(unsupported(
                "bind",
                "`COPY` the files, and remove them in the step that uses them",
            ));
        }
        "tmpfs" => return Err(unsupported("tmpfs", "remove the files in the command itself")),
        "ssh" => return Err(unsupported("ssh", "`--mount=type=secret` can hold a key")),
        other => return Err(MountError::Wrong(format!("there is no mount of type `{other}`"))),
    }
    let mut secret = SecretMount {
        id: String::new(),
        target: Word::literal(""),
        required: false,
        mode: 0o400,
    };
    let mut target = None;
    for (name, value) in &fields {
        match (name.to_ascii_lowercase().as_str(), *value) {
            ("type", _) => {}
            ("id", Some(id)) => id.clone_into(&mut secret.id),
            ("target" | "dst" | "destination", Some(path)) => target = Some(path),
            ("required", None | Some("true" | "1")) => secret.required = true,
            ("required", Some("false" | "0")) => secret.required = false,
            ("mode", Some(mode)) => secret.mode = octal(mode).ok_or_else(|| wrong_mode(mode))?,
            ("uid" | "gid", Some("0")) => {}
            ("uid" | "gid", Some(_)) => {
                return Err(MountError::Unsupported(
                    "a secret of another user than root".to_owned(),
                    "`mode=0444` lets others read it",
                ));
            }
            ("env", _) => {
                return Err(MountError::Unsupported(
                    "a secret as a variable (`env=`)".to_owned(),
                    "read the file: `VAR=$(cat /run/secrets/ID) command`",
                ));
            }
            (other, Some(_)) => return Err(MountError::Wrong(format!("a secret has no setting `{other}`"))),
            (other, None) => return Err(MountError::Wrong(format!("`{other}` needs a value"))),
        }
    }
    if secret.id.is_empty() {
        // As Docker has it: the target's last part.
        let last = target
            .and_then(|path| path.rsplit('/').next())
            .unwrap_or_default();
        last.clone_into(&mut secret.id);
    }
    check_secret_id(&secret.id).map_err(MountError::Wrong)?;
    secret.target = match target {
        Some(path) => Word::docker(path, escape),
        None => Word::literal(format!("/run/secrets/{}", secret.id)),
    };
    secret
        .target
        .check()
        .map_err(|error| MountError::Wrong(error.to_string()))?;
    Ok(secret)
}

/// Whether this can name a secret: it becomes a file's name.
pub(crate) fn check_secret_id(id: &str) -> Result<(), String> {
    if id.is_empty() {
        return Err("a secret needs `id=`".to_owned());
    }
    let good = id.len() <= 128
        && !id.starts_with('.')
        && id
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    match good {
        true => Ok(()),
        false => Err(format!(
            "`{}` cannot be a secret's id: letters, digits, `-`, `_`, `.`",
            id.chars().take(80).collect::<String>()
        )),
    }
}

fn unsupported(kind: &str, instead: &'static str) -> MountError {
    MountError::Unsupported(format!("`--mount=type={kind}`"), instead)
}

fn wrong_mode(mode: &str) -> MountError {
    MountError::Wrong(format!("`{mode}` is not an octal mode like 0400"))
}

/// Permissions in octal, of 0o7777.
pub(crate) fn octal(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let good = !digits.is_empty() && digits.len() <= 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
    u32::from_str_radix(digits, 8)
        .ok()
        .filter(|mode| good && *mode <= 0o7777)
}
