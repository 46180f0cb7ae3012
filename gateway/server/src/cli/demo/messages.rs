//! The demo's HL7 v2 messages: invented people, realistic shape.

/// One message and what the app says about it.
#[derive(Clone, Debug)]
pub(super) struct Message {
    /// MSH-10: by it the partner tells messages apart.
    pub(super) control_id: String,
    /// `ADT_A01`
    pub(super) kind: &'static str,
    /// What it is about, for the reader of the demo.
    pub(super) about: &'static str,
    /// PID-3, which is also the ordering key.
    pub(super) patient: String,
    pub(super) body: String,
}

struct Patient {
    family: &'static str,
    given: &'static str,
    born: &'static str,
    sex: char,
}

const PATIENTS: [Patient; 5] = [
    Patient { family: "Okafor", given: "Ada", born: "19841203", sex: 'F' },
    Patient { family: "Lindqvist", given: "Nils", born: "19570518", sex: 'M' },
    Patient { family: "Marchetti", given: "Giulia", born: "20010922", sex: 'F' },
    Patient { family: "Nakamura", given: "Ren", born: "19690204", sex: 'M' },
    Patient { family: "O'Brien", given: "Siobhán", born: "19930730", sex: 'F' },
];

/// What can happen to a patient, in this order.
const STORY: [(&str, &str); 4] = [
    ("ADT_A01", "admission"),
    ("ORM_O01", "blood count ordered"),
    ("ORU_R01", "blood count result"),
    ("ADT_A03", "discharge"),
];

/// The messages shown one by one.
pub(super) fn few() -> Vec<Message> {
    [(0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (2, 0)]
        .into_iter()
        .map(|(patient, step)| message(patient, step))
        .collect()
}

/// `count` further messages of one patient, in the order in which they must arrive.
pub(super) fn series(patient: usize, count: usize) -> Vec<Message> {
    (0..count).map(|step| message(patient, step)).collect()
}

fn message(patient: usize, step: usize) -> Message {
    let (kind, about) = STORY[step % STORY.len()];
    let mrn = format!("MRN-{}", 1001 + patient);
    let control_id = format!("{mrn}-{step:04}");
    let minute = step % 60;
    let stamp = format!("2026112308{minute:02}00");
    let (code, trigger) = kind.split_once('_').unwrap_or((kind, ""));
    let structure = if kind == "ADT_A03" { "ADT_A03" } else { kind };
    let mut segments = vec![format!(
        "MSH|^~\\&|EHR|CLINIC|LIS|LAB|{stamp}||{code}^{trigger}^{structure}|{control_id}|P|2.5.1|||AL|NE||UNICODE UTF-8"
    )];
    if code == "ADT" {
        segments.push(format!("EVN|{trigger}|{stamp}"));
    }
    let who = &PATIENTS[patient % PATIENTS.len()];
    segments
        .push(format!("PID|1||{mrn}^^^CLINIC^MR||{}^{}||{}|{}", who.family, who.given, who.born, who.sex));
    segments.push(format!(
        "PV1|1|I|W{}^{:02}^A^CLINIC||||4711^Hartmann^Eva^^^Dr",
        1 + patient % 3,
        1 + patient % 20
    ));
    segments.extend(details(code, &control_id, &stamp, step));
    // Every segment ends with a carriage return.
    let body = segments.iter().map(|segment| format!("{segment}\r")).collect();
    Message { control_id, kind, about, patient: mrn, body }
}

fn details(code: &str, control_id: &str, stamp: &str, step: usize) -> Vec<String> {
    const COUNT: &str = "57021-8^CBC W Auto Differential panel^LN";
    match code {
        "ORM" => vec![
            format!("ORC|NW|{control_id}^EHR||||||{stamp}"),
            format!("OBR|1|{control_id}^EHR||{COUNT}|||{stamp}"),
        ],
        "ORU" => vec![
            format!("OBR|1|{control_id}^EHR|L{control_id}^LIS|{COUNT}|||{stamp}|||||||||||||||{stamp}|||F"),
            format!("OBX|1|NM|718-7^Hemoglobin^LN||{}.{}|g/dL|12.0-16.0||||F", 12 + step % 4, step % 10),
            format!("OBX|2|NM|6690-2^Leukocytes^LN||{}.{}|10*3/uL|4.0-11.0||||F", 5 + step % 5, step % 10),
            format!("OBX|3|NM|777-3^Platelets^LN||{}|10*3/uL|150-400||||F", 180 + step % 150),
        ],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_message_is_well_formed_and_its_own() {
        let mut ids = HashSet::new();
        let series = (20..40).flat_map(|patient| series(patient, 20));
        for message in few().into_iter().chain(series) {
            assert!(ids.insert(message.control_id.clone()), "{}", message.control_id);
            assert!(message.body.starts_with("MSH|^~\\&|"));
            assert!(message.body.ends_with('\r') && !message.body.contains('\n'));
            let fields: Vec<&str> = message.body.split('\r').next().unwrap().split('|').collect();
            assert_eq!(fields[8].replacen('^', "_", 1).split('^').next().unwrap(), message.kind);
            assert_eq!(fields[9], message.control_id);
            let pid = message.body.split('\r').find(|segment| segment.starts_with("PID|")).unwrap();
            assert!(pid.split('|').nth(3).unwrap().starts_with(&message.patient));
        }
    }
}
