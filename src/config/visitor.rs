//! [`KeyVisitor`]: a pass over the declared keys. See `declaration`.

use super::form::Form;
use super::sequence::SequenceStep;

/// A pass over all keys.
pub(super) trait KeyVisitor {
    /// Begins a section. The keys that follow belong to it.
    fn section(&mut self, name: &'static str);

    /// Visits a key whose value may be absent.
    fn key<T: 'static>(&mut self, name: &'static str, value: &mut Option<T>, form: Form<T>);

    /// Visits the steps of a sequence, whose keys have no fixed names.
    fn steps(&mut self, steps: &mut Vec<SequenceStep>);

    /// Visits a key with a default value.
    fn with_default<T: Clone + 'static>(
        &mut self,
        name: &'static str,
        value: &mut T,
        form: Form<T>,
    ) {
        let mut given = Some(value.clone());
        self.key(name, &mut given, form);
        if let Some(given) = given {
            *value = given;
        }
    }

    /// Visits a key with a list. An empty list is shown by the absence of the key.
    fn list<T: 'static>(&mut self, name: &'static str, items: &mut Vec<T>, form: Form<Vec<T>>) {
        let mut given = Some(std::mem::take(items)).filter(|items| !items.is_empty());
        self.key(name, &mut given, form);
        *items = given.unwrap_or_default();
    }
}
