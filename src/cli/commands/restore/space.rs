//! [`check_fit`]: refuses, or warns of, a restore that needs more space than its target has.

use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::plan::space::Fit;
use crate::run::RunError;

/// Refuses a restore that does not fit, unless the user accepts it. A dry run, and everything that
/// is not certain, only warns. Returns the fit for the document of a dry run.
pub(crate) fn check_fit(fit: Fit, although_full: bool, context: &Context) -> Result<Fit, Failure> {
    match &fit {
        Fit::Fits => {}
        Fit::TooLarge(_) if !although_full => {
            let hint = "make room or choose another target; --although-full restores anyway, \
                        until the place is full";
            if !context.global.dry_run {
                return Err(RunError::refused(format!("no space: {fit}"), hint).into());
            }
            let output = &context.output;
            output.always(&format!("a restore would be refused: {fit}"));
            output.always(&format!("  {hint}"));
        }
        Fit::Doubtful(_) | Fit::TooLarge(_) | Fit::Unknown { .. } => {
            context.output.always(&fit.to_string());
        }
    }
    Ok(fit)
}
