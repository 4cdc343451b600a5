use super::*;

async fn look_up(config: &str, registry: &str) -> Result<Option<Credential>, Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    std::fs::write(&path, config).unwrap();
    let store = Store {
        config: Some(path),
        helper_path: None,
    };
    store.look_up(registry).await
}

fn password(user: &str, secret: &str) -> Option<Credential> {
    Some(Credential::Password {
        user: user.to_owned(),
        secret: secret.to_owned(),
    })
}

#[tokio::test]
async fn what_docker_and_others_write_is_read() {
    // YTpiOmM= is a:b:c.
    for (config, registry, expected) in [
        ("{}", "r", None),
        (
            r#"{"auths":{"r":{"auth":"YTpiOmM="}}}"#,
            "r",
            password("a", "b:c"),
        ),
        (r#"{"auths":{"r":{"auth":"YTpiOmM"}}}"#, "r", password("a", "b:c")),
        (r#"{"auths":{"r:5000":{"auth":"YTpiOmM="}}}"#, "r", None),
        (
            r#"{"auths":{"https://r/v1/":{"auth":"YTpiOmM="}}}"#,
            "r",
            password("a", "b:c"),
        ),
        (
            r#"{"auths":{"https://index.docker.io/v1/":{"auth":"YTpiOmM="}}}"#,
            "docker.io",
            password("a", "b:c"),
        ),
        (
            r#"{"auths":{"docker.io":{"username":"a","password":"b"}}}"#,
            "docker.io",
            password("a", "b"),
        ),
        (r#"{"auths":{"r":{}},"credsStore":""}"#, "r", None),
        (
            r#"{"auths":{"r":{"auth":"YTpiOmM=","identitytoken":"t"}}}"#,
            "r",
            Some(Credential::Identity("t".to_owned())),
        ),
        (
            r#"{"auths":{"r":{"registrytoken":"t"}}}"#,
            "r",
            Some(Credential::Registry("t".to_owned())),
        ),
    ] {
        assert_eq!(look_up(config, registry).await.unwrap(), expected, "{config}");
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_said_without_secrets() {
    for (config, reason) in [
        (
            r#"{"auths":{"r":{"auth":"geheim!"}}}"#,
            r#"the entry of "r" is damaged"#,
        ),
        (
            r#"{"auths":{"r":{"auth":"Z2VoZWlt"}}}"#,
            r#"the entry of "r" is damaged"#,
        ),
        (r#"{"auths":{"r":"geheim"}}"#, "line 1, column 22"),
        (
            r#"{"credsStore":"../geheim"}"#,
            "the name of a credential helper is no name of a program",
        ),
    ] {
        let error = look_up(config, "r").await.unwrap_err();
        let Error::DockerConfig { reason: said, .. } = &error else {
            panic!("{error:?}");
        };
        assert_eq!(said, reason, "{config}");
        assert!(!format!("{error:?} {error}").contains("geheim"));
    }
    // Where there is no file there are no credentials.
    let store = Store {
        config: Some("/no/such/file".into()),
        helper_path: None,
    };
    assert_eq!(store.look_up("r").await.unwrap(), None);
    let secret = Credential::Identity("geheim".to_owned());
    assert!(!format!("{secret:?}").contains("geheim"));
}
