//! Both front ends of recipes are asked the same.

use std::collections::BTreeMap;

use banger_recipe::{Environment, Kind, Source, parse};

/// Reads a recipe. What comes before a first NUL is it; then a target; then a build argument's name and its value.
///
/// # Panics
/// Where a problem is nowhere in the text, or the same recipe is not the same twice.
pub fn read(input: &[u8], kind: Kind) {
    let Ok(input) = std::str::from_utf8(input) else {
        return;
    };
    let mut parts = input.split('\0');
    let source = Source {
        name: "fuzz",
        text: parts.next().unwrap_or_default(),
        kind,
        base: None,
    };
    let target = parts.next();
    let mut args = BTreeMap::new();
    while let (Some(name), Some(value)) = (parts.next(), parts.next()) {
        args.insert(name.to_owned(), value.to_owned());
    }
    let recipe = parse(&source, &args, target);
    assert_eq!(recipe, parse(&source, &args, target), "the same twice");
    match recipe {
        Err(errors) => {
            assert!(!errors.problems.is_empty());
            let lines = source.text.split('\n').count();
            for place in errors.problems.iter().filter_map(|problem| problem.place) {
                assert!(
                    (1..=lines.max(1)).contains(&(place.line as usize)),
                    "line {place} of {lines}"
                );
                assert!(place.column >= 1);
            }
        }
        Ok(recipe) => {
            for stage in &recipe.stages {
                let mut environment = Environment::on_image(banger_recipe::Config::default());
                for step in &stage.steps {
                    let Ok(resolved) = step.resolve(&environment) else {
                        break;
                    };
                    environment.apply(&resolved);
                }
            }
        }
    }
}
