//! `config check` and `config show`.

use super::Failure;
use super::args::{ConfigCommand, Global};
use super::output::{Output, WIDTH, wrap};
use super::sequence::parse_steps;
use super::wire::{load_config, usage};
use serde_json::json;

pub(super) fn config(global: &Global, command: &ConfigCommand, output: &Output) -> Result<(), Failure> {
    let (config, env) = load_config(global, output)?;
    match command {
        ConfigCommand::Init(_) | ConfigCommand::Convert { .. } | ConfigCommand::Recover(_) => {
            return Err(usage("this needs no configuration", "see --help"));
        }
        ConfigCommand::Show => {
            output.line(config.to_display_toml().trim_end());
            output.json(|| json!({ "file": config.file, "toml": config.to_display_toml() }));
        }
        ConfigCommand::Check => {
            parse_steps(&config)?;
            for missing in config.missing_files(&env) {
                output.note(&missing.to_string());
            }
            output.line(format!("{}: good", config.file.display()));
            for advice in config.check_advice() {
                let text = format!("  {}: {}", advice.subject, advice.text);
                wrap(&text, WIDTH, "    ").iter().for_each(|line| output.line(line));
            }
            output.json(|| {
                let advice: Vec<_> = config
                    .check_advice()
                    .iter()
                    .map(|advice| json!({ "subject": advice.subject, "text": advice.text }))
                    .collect();
                json!({ "file": config.file, "advice": advice })
            });
        }
    }
    Ok(())
}
