//! The installation as a whole: alerts, the audit log, the CA, status, backups.

use serde_json::json;

use super::operation::Op;
use crate::control::{activity, alerts, audit, ca, config, explain, status};
use crate::storage::AuditVerdict;

pub(super) fn operations() -> Vec<Op> {
    vec![
        Op::get("/api/alerts", "listAlerts", "What operators were told of late, newest first")
            .query::<alerts::AlertsQuery>()
            .gives::<alerts::AlertList>(),
        Op::post("/api/alerts/test", "testAlerts", "Sends a test to receivers")
            .takes::<alerts::TestWish>()
            .gives::<alerts::AlertTests>()
            .may(&[404, 409]),
        Op::get("/api/audit", "listAudit", "What was done, by whom")
            .query::<audit::AuditQuery>()
            .gives::<audit::AuditList>(),
        Op::get("/api/audit/verify", "verifyAudit", "Whether the audit log is as it was written")
            .query::<audit::VerifyQuery>()
            .gives::<AuditVerdict>(),
        Op::get("/api/ca", "getCa", "The roots that clients are to trust").gives::<ca::CaView>(),
        Op::post("/api/ca/rotate", "rotateCa", "A new root in place of all others, in use after a restart")
            .gives::<ca::CaRotated>()
            .may(&[409]),
        Op::get("/api/activity", "getActivity", "What happened in the last minutes, for charts")
            .query::<activity::ActivityQuery>()
            .gives::<activity::ActivityView>(),
        Op::get("/api/config", "getConfig", "Every setting in force, and who said it").gives::<config::ConfigView>(),
        Op::get("/api/explain", "explain", "What would become of a request, and why, without sending it")
            .query::<explain::ExplainQuery>()
            .gives::<explain::ExplainView>()
            .may(&[404]),
        Op::get("/api/status", "getStatus", "How it stands").gives::<status::StatusView>(),
        Op::post("/api/backup", "backUp", "Writes a backup on the machine sidekey runs on")
            .takes_with::<status::BackupWish>(&["path"])
            .example(json!({"path": "/var/backups/sidekey-2026-11-26"}))
            .gives::<status::BackupMade>()
            .may(&[409]),
    ]
}
