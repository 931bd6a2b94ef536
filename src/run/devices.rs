//! The device of a command: opened with a word about which it is, closed with one about what was left behind.

use crate::base::Result;
use crate::device::{Choice, Device, leak_in_words};

/// Runs `work` on the device called `name` and closes it. `graphs` says whether steps that repeat are captured there;
/// `say` hears what people should know: which device `auto` took, and memory that was not given back.
///
/// # Errors
/// No such device, those of `work`, and what went wrong on the device that nobody had waited for.
pub fn on<T>(
    name: &str,
    graphs: bool,
    say: &mut dyn FnMut(&str),
    work: impl FnOnce(&Device, Option<&Choice>) -> Result<T>,
) -> Result<T> {
    let (device, choice) = Device::choose(name)?;
    device.use_graphs(graphs);
    if let Some(choice) = choice.as_ref().filter(|choice| choice.aloud) {
        say(&choice.sentence);
    }
    let done = work(&device, choice.as_ref())?;
    let name = device.name();
    if let Some(leak) = leak_in_words(&name, &device.close()?) {
        say(&leak);
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Dtype;

    #[test]
    fn a_device_that_is_left_clean_says_nothing() {
        let mut said = Vec::new();
        let mut say = |line: &str| said.push(line.to_string());
        for graphs in [false, true] {
            on("sim", graphs, &mut say, |device, choice| {
                assert_eq!(choice, None);
                assert!(matches!(device, Device::Gpu(gpu) if gpu.uses_graphs() == graphs));
                device.allocate(Dtype::F32, 100).map(|_| ())
            })
            .unwrap();
        }
        let kept = on("sim", true, &mut say, |device, _| device.allocate(Dtype::F32, 256)).unwrap();
        assert_eq!(said.len(), 1);
        assert!(
            said[0].starts_with("sim was closed while 1 blocks of its memory were in use: other 1.0 KiB")
        );
        drop(kept);
    }
}
