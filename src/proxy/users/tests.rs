use super::*;

const HASH: &str = "$2y$04$abcdefghijklmnopqrstuuchfW6qKGHPmWbpYPB8NwI5L.KjFn0Ti";

fn known(dir: &tempfile::TempDir, user: &str) -> Known {
    let path = dir.path().join("users");
    std::fs::write(&path, format!("{user}:{HASH}\n")).unwrap();
    let table = Arc::new(Table::read(&path).unwrap_or_else(|wrong| panic!("{wrong:?}")));
    let state = State { table, right: HashMap::new() };
    Known { secret: Secret::new([7; 32]), state: Mutex::new(state) }
}

fn basic(user: &str, password: &str) -> Basic {
    Basic { user: user.into(), password: password.as_bytes().to_vec().into() }
}

#[test]
fn only_a_user_with_his_password_is_right_and_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let known = known(&dir, "ann");
    for (user, password, right) in [
        ("ann", "right-2y", true),
        ("ann", "wrong", false),
        ("bob", "right-2y", false),
        ("", "right-2y", false),
        ("ann:", "right-2y", false),
    ] {
        let basic = basic(user, password);
        let mark = known.mark(&basic);
        assert_eq!(known.compare(&basic, &mark), right, "{user} {password}");
        assert_eq!(known.is_right(&mark), right, "{user} {password}");
    }
    let (one, other) = (basic("a", "bc"), basic("ab", "c"));
    assert_ne!(known.mark(&one), known.mark(&other), "no two are the same mark");
}

#[test]
fn what_is_remembered_is_bounded_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let known = known(&dir, "ann");
    let table = known.table();
    let mark = |n: usize| known.mark(&basic(&n.to_string(), "x"));
    for n in 0..=REMEMBERED_MAX {
        known.note_right(&table, mark(n));
    }
    assert_eq!(known.state().right.len(), REMEMBERED_MAX);
    assert!(!known.is_right(&mark(0)) && known.is_right(&mark(REMEMBERED_MAX)));
    known.state().right.values_mut().for_each(|until| *until = Instant::now());
    assert!(!known.is_right(&mark(REMEMBERED_MAX)));
    known.note_right(&table, mark(0));
    assert_eq!(known.state().right.len(), 1);
}

#[test]
fn a_comparison_by_an_older_file_is_not_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let known = known(&dir, "ann");
    let older = known.table();
    known.state().table = Arc::new(Table::read(&dir.path().join("users")).unwrap());
    let mark = known.mark(&basic("ann", "right-2y"));
    known.note_right(&older, mark);
    assert!(!known.is_right(&mark));
}

#[test]
fn those_who_wait_are_bounded_for_each_client_and_in_all() {
    let dir = tempfile::tempdir().unwrap();
    let checks = Checks::new(Arc::new(known(&dir, "ann")));
    let ask = |client: u8| checks.ask([127, 0, 0, client].into(), basic("a", "b"), [0; 32]);
    for client in 1..=8 {
        let taken = (0..10).filter(|_| ask(client).is_some()).count();
        assert_eq!(taken, 8, "of client {client}");
    }
    assert!(ask(9).is_none(), "more than {} wait", 8 * 8);
}
