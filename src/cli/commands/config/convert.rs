//! `config convert`: reads the INI file and the rclone.conf that it uses, and prints the TOML.

use crate::cli::failure::Failure;
use crate::cli::screen::output::Output;
use crate::config::convert::{convert_ini, rclone_conf_of};
use crate::config::{Config, Environment};
use crate::run::RunError;
use std::path::{Path, PathBuf};

pub(crate) fn convert(file: &Path, output: &Output) -> Result<(), Failure> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|source| RunError::File {
            operation: "read",
            path: path.display().to_string(),
            source,
        })
    };
    let text = read(file)?;
    let env = Environment::current();
    let conf = rclone_conf_of(&text).or_else(|| default_rclone_conf(&env));
    let conf_text = conf.as_deref().map(read).and_then(|text| {
        // The rclone.conf may exist only on the host that the configuration is for. The conversion
        // reports the consequences of an unreadable file.
        text.map_err(|error| tracing::info!("{}", crate::run::error_chain(&error)))
            .ok()
    });
    let converted = convert_ini(&text, conf_text.as_deref());
    for lost in &converted.lost {
        output.always(&format!("not carried over: {lost}"));
    }
    for advice in &converted.advice {
        output.always(advice);
    }
    // Parse the generated TOML at once, so that a mistake shows now and not in the nightly run.
    if let Err(error) = Config::parse(&converted.toml, Path::new("(converted)"), &env) {
        output.always("the result needs an edit before it can be used:");
        output.always(&error.to_string());
    }
    output.json(&converted);
    if !output.is_json() {
        output.raw(converted.toml.as_bytes());
    }
    Ok(())
}

/// Returns the file that rclone reads without an option, if it exists.
fn default_rclone_conf(env: &Environment) -> Option<PathBuf> {
    let named = std::env::var_os("RCLONE_CONFIG").map(PathBuf::from);
    let folder = env
        .xdg_config_home
        .clone()
        .or_else(|| Some(env.home.as_ref()?.join(".config")));
    named
        .or_else(|| Some(folder?.join("rclone/rclone.conf")))
        .filter(|path| path.exists())
}
