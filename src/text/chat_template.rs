//! Chat templates: a conversation as the text the model was trained on. The only file that imports `minijinja`.
//!
//! Templates are Jinja as transformers runs it: blocks trimmed, Python's string methods, `raise_exception`,
//! `strftime_now`, `tojson` without HTML escapes, `{% generation %}` marks ignored.

use crate::base::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, ErrorKind, Value};
use minijinja_contrib::pycompat;
use serde::Serialize;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A turn of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }
}

/// A template and the names of the special tokens it may use.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    variables: BTreeMap<String, Json>,
}

impl ChatTemplate {
    /// A template with the special tokens of a tokenizer_config.json (`bos_token`, ...), or `Json::Null`.
    ///
    /// # Errors
    /// The template is not valid Jinja: the message has the line.
    pub fn new(source: &str, tokenizer_config: &Json) -> Result<ChatTemplate> {
        let mut variables = BTreeMap::new();
        for (name, value) in tokenizer_config.as_object().into_iter().flatten() {
            // Either the token's text, or an object with its settings.
            let text = value.as_str().or_else(|| value["content"].as_str());
            if let Some(text) = text.filter(|_| name.ends_with("_token")) {
                variables.insert(name.clone(), Json::from(text));
            }
        }
        let template = ChatTemplate { source: without_generation_marks(source), variables };
        template.environment(None)?.template_from_str(&template.source).map_err(|error| wrong(&error))?;
        Ok(template)
    }

    /// The template of a Hugging Face folder: `file` is the contents of chat_template.jinja, which comes before the
    /// key `chat_template` of tokenizer_config.json.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn from_parts(file: Option<&str>, tokenizer_config: &Json) -> Result<Option<ChatTemplate>> {
        let key = match &tokenizer_config["chat_template"] {
            // Several named templates.
            Json::Array(list) => list
                .iter()
                .find(|entry| entry["name"] == "default")
                .or(list.first())
                .and_then(|entry| entry["template"].as_str()),
            value => value.as_str(),
        };
        file.or(key).map(|source| ChatTemplate::new(source, tokenizer_config)).transpose()
    }

    /// The text of a conversation. With `answer`, it ends where the assistant's next turn begins.
    ///
    /// # Errors
    /// The template refuses the conversation, or fails.
    pub fn render(&self, messages: &[Message], answer: bool) -> Result<String> {
        self.render_with(messages, answer, &BTreeMap::new(), None)
    }

    /// As [`ChatTemplate::render`], with further variables (`enable_thinking`) and a fixed time in seconds since 1970
    /// for templates that write the date (UTC).
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_with(
        &self,
        messages: &[Message],
        answer: bool,
        variables: &BTreeMap<String, Json>,
        now: Option<i64>,
    ) -> Result<String> {
        let environment = self.environment(now)?;
        let template = environment.template_from_str(&self.source).map_err(|error| wrong(&error))?;
        let mut context: BTreeMap<&str, Value> = BTreeMap::new();
        for (name, value) in self.variables.iter().chain(variables) {
            context.insert(name, Value::from(Serde(value)));
        }
        context.insert("messages", Value::from(Serde(messages)));
        context.insert("add_generation_prompt", Value::from(answer));
        template.render(context).map_err(|error| wrong(&error))
    }

    fn environment(&self, now: Option<i64>) -> Result<Environment<'static>> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| wrong(&error))?);
        environment.set_unknown_method_callback(pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> std::result::Result<Value, _> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment
            .add_function("strftime_now", move |format: String| strftime(&format, now.unwrap_or_else(clock)));
        environment.add_filter("tojson", to_json);
        Ok(environment)
    }
}

fn wrong(error: &minijinja::Error) -> Error {
    let line = error.line().map_or(String::new(), |line| format!("line {line}: "));
    let problem = error.detail().map_or_else(|| error.to_string(), str::to_string);
    Error::input(
        "chat template",
        format!("{line}{problem}"),
        "check the conversation, or the model's chat template",
    )
}

/// transformers marks the assistant's words with a tag of its own; the text is the same without it.
fn without_generation_marks(source: &str) -> String {
    let mut text = source.to_string();
    for name in ["generation", "endgeneration"] {
        for (open, close) in [("{%", "%}"), ("{%-", "%}"), ("{%", "-%}"), ("{%-", "-%}")] {
            let (left, right) = (open.ends_with('-'), close.starts_with('-'));
            // A comment keeps the tag's effect on the white space around it.
            let comment = format!("{{#{}{}#}}", if left { "-" } else { "" }, if right { "-" } else { "" });
            for mark in [format!("{open} {name} {close}"), format!("{open}{name}{close}")] {
                text = text.replace(&mark, &comment);
            }
        }
    }
    text
}

/// `value | tojson(indent=n)` as Python's `json.dumps` writes it, without escaping for HTML.
fn to_json(value: Value, keywords: Kwargs) -> std::result::Result<String, minijinja::Error> {
    let indent: Option<usize> = keywords.get("indent")?;
    let _: Option<bool> = keywords.get("ensure_ascii")?;
    keywords.assert_all_used()?;
    let json = serde_json::to_value(&value)
        .map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    let mut text = String::new();
    write_json(&json, indent.map(|width| (width.min(16), 0)), &mut text);
    Ok(text)
}

/// Python separates with ", " and ": "; serde_json does so in neither of its styles.
fn write_json(value: &Json, indent: Option<(usize, usize)>, out: &mut String) {
    let deeper = indent.map(|(width, depth)| (width, depth + 1));
    let line = |indent: Option<(usize, usize)>, out: &mut String| {
        if let Some((width, depth)) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width * depth));
        }
    };
    let separator = if indent.is_some() { "," } else { ", " };
    match value {
        Json::Array(list) if !list.is_empty() => {
            out.push('[');
            for (i, item) in list.iter().enumerate() {
                out.push_str(if i > 0 { separator } else { "" });
                line(deeper, out);
                write_json(item, deeper, out);
            }
            line(indent, out);
            out.push(']');
        }
        Json::Object(map) if !map.is_empty() => {
            out.push('{');
            for (i, (key, item)) in map.iter().enumerate() {
                out.push_str(if i > 0 { separator } else { "" });
                line(deeper, out);
                out.push_str(&format!("{}: ", Json::from(key.as_str())));
                write_json(item, deeper, out);
            }
            line(indent, out);
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
}

fn clock() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() as i64)
}

/// Python's `strftime` for the fields that templates use; UTC, English names. Unknown fields stay as they are.
fn strftime(format: &str, seconds: i64) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Civil date from the day number, in 400-year eras that begin on 1 March (H. Hinnant, "chrono-compatible
    // low-level date algorithms").
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[days.rem_euclid(7) as usize]);
    let hour = second / 3600;
    let mut text = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        match rest.next() {
            Some('d') => text.push_str(&format!("{day:02}")),
            Some('m') => text.push_str(&format!("{month:02}")),
            Some('Y') => text.push_str(&format!("{year:04}")),
            Some('y') => text.push_str(&format!("{:02}", year.rem_euclid(100))),
            Some('b') => text.push_str(&month_name[..3]),
            Some('B') => text.push_str(month_name),
            Some('a') => text.push_str(&day_name[..3]),
            Some('A') => text.push_str(day_name),
            Some('H') => text.push_str(&format!("{hour:02}")),
            Some('I') => text.push_str(&format!("{:02}", (hour + 11) % 12 + 1)),
            Some('p') => text.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('M') => text.push_str(&format!("{:02}", second / 60 % 60)),
            Some('S') => text.push_str(&format!("{:02}", second % 60)),
            Some('%') => text.push('%'),
            Some(other) => text.extend(['%', other]),
            None => text.push('%'),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn dates() {
        assert_eq!(strftime("%d %b %Y", 0), "01 Jan 1970");
        assert_eq!(
            strftime("%A %d %B %Y %H:%M:%S %I%p", 951_827_696),
            "Tuesday 29 February 2000 12:34:56 12PM"
        );
        assert_eq!(strftime("%a %y-%m-%d 100%%", 1_735_689_599), "Tue 24-12-31 100%");
    }

    #[test]
    fn transformers_extras() {
        let source = "{%- for m in messages %}\n    {%- if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}\n\
                      {{ bos_token }}{{ m['content'].strip() }}{% generation %}!{% endgeneration %}\n{% endfor %}\n\
                      {{ {'a': [1, '<b>']} | tojson }} {{ strftime_now('%Y') }}";
        let template = ChatTemplate::new(source, &json!({"bos_token": {"content": "<s>"}})).unwrap();
        let none = BTreeMap::new();
        let text = template.render_with(&[Message::new("user", " hi ")], false, &none, Some(0)).unwrap();
        // As transformers 5 renders it: the newline behind a tag is trimmed.
        assert_eq!(text, "<s>hi!{\"a\": [1, \"<b>\"]} 1970");
        let error = template.render(&[Message::new("tool", "x")], false).unwrap_err().to_string();
        assert!(error.contains("no tools"), "{error}");
        let error = ChatTemplate::new("a\n{% if %}", &Json::Null).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn the_file_comes_before_the_key() {
        let config = json!({"chat_template": [{"name": "other", "template": "o"}, {"name": "default", "template": "d"}]});
        let text =
            |file| ChatTemplate::from_parts(file, &config).unwrap().unwrap().render(&[], false).unwrap();
        assert_eq!((text(Some("f")), text(None)), ("f".to_string(), "d".to_string()));
        assert!(ChatTemplate::from_parts(None, &Json::Null).unwrap().is_none());
    }
}
