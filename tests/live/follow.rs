//! A configuration's file that is watched, and one that is not.

use super::*;

#[test]
fn a_file_that_is_watched_is_followed_however_it_changes() {
    let mut setup = Setup::new().with(json!({
        "proxy": { "watch_config": true }, "logging": { "level": "debug" },
    }));
    // As Kubernetes has it: the file is a link into a folder that is a link, which is swapped.
    let file = setup.write_config();
    let text = |setup: &mut Setup, value: &str| {
        setup.set(json!({ "headers": rule(value) }));
        let path = setup.write_config();
        fs::read_to_string(path).expect("the configuration")
    };
    let mount = setup.path("mount");
    let put = |version: &str, text: &str| {
        fs::create_dir_all(mount.join(version)).expect("a folder");
        fs::write(mount.join(version).join("config.yaml"), text).expect("the file");
        symlink(version, mount.join("..tmp")).expect("a link");
        fs::rename(mount.join("..tmp"), mount.join("..data")).expect("the swap");
    };
    put("..1", &text(&mut setup, "0"));
    symlink("..data/config.yaml", mount.join("config.yaml")).expect("a link");
    let linked = mount.join("config.yaml").to_str().expect("UTF-8").to_owned();
    let proxy = setup.start_with(&["--config", &linked]);
    let in_force = |proxy: &Proxy, value: &str| {
        wait_until(value, || {
            let shown = &config(proxy)["headers"][names::REGISTRY]["set"]["X-Via"];
            (shown == value).then_some(())
        });
    };
    in_force(&proxy, "0");
    put("..2", &text(&mut setup, "swapped"));
    in_force(&proxy, "swapped");
    fs::write(mount.join("..2/config.yaml"), text(&mut setup, "below")).expect("the file");
    in_force(&proxy, "below");
    proxy.stop();

    // And as editors do: in place, and by another file in its place.
    // It writes the file, too: before anybody watches that.
    let renamed = text(&mut setup, "renamed");
    fs::write(&file, text(&mut setup, "0")).expect("the file");
    let path = file.to_str().expect("UTF-8").to_owned();
    let proxy = setup.start_with(&["--config", &path]);
    text(&mut setup, "written");
    in_force(&proxy, "written");
    let beside = setup.path("config.yaml.swp");
    fs::write(&beside, renamed).expect("the file");
    fs::rename(&beside, &file).expect("the rename");
    in_force(&proxy, "renamed");
    // A bad one is said once, and changes nothing; one that is only touched ends no patch.
    patched(&proxy, json!({ "headers": rule("patched") }));
    let good = fs::read_to_string(&file).expect("the file");
    let bad = "headers: {}\nno: 1\n";
    for n in 0..3 {
        fs::write(&file, format!("{bad}{}", "#".repeat(n))).expect("the file");
        proxy.wait_log(&["ERROR", "the configuration stays as it was", "config.yaml:2: no"]);
    }
    let touched = |line: &&String| line.contains("says what it did");
    let touches = || proxy.log().iter().filter(touched).count();
    let before = touches();
    fs::write(&file, &good).expect("the file");
    wait_until("it was looked at", || (touches() > before).then_some(()));
    in_force(&proxy, "patched");
    text(&mut setup, "good again");
    in_force(&proxy, "good again");
    let errors = proxy.log().iter().filter(|line| line.contains("stays as it was")).count();
    assert_eq!(errors, 1);
}

#[test]
fn a_file_that_is_not_watched_is_left_alone() {
    let mut setup = Setup::new();
    let proxy = setup.start();
    setup.set(json!({ "headers": rule("1") }));
    setup.write_config();
    let tasks = fs::read_dir(format!("/proc/{}/task", proxy.pid())).expect("its threads");
    let name =
        |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    assert!(tasks.flatten().map(name).all(|name| name.trim_end() != "watch"));
}
