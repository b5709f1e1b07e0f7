package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/fdpass"
	"tapestry.dev/tapestry/test/await"
)

// listening lists the listening and bound sockets in this network namespace, from /proc. Unix sockets are listed by
// path (those without a file begin with "@"), TCP sockets by address and port, UDP sockets by port.
func listening(t *testing.T) (list []string) {
	t.Helper()
	rows := func(file string) (rows [][]string) {
		b, err := os.ReadFile("/proc/net/" + file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			rows = append(rows, strings.Fields(line))
		}
		return rows[1:]
	}
	for _, r := range rows("unix") {
		const listens = "00010000" // __SO_ACCEPTCON
		if len(r) > 7 && (r[3] == listens || r[7][0] == '@') {
			list = append(list, "unix "+filepath.Base(r[7]))
		}
	}
	for _, proto := range []string{"tcp", "tcp6", "udp", "udp6"} {
		for _, r := range rows(proto) {
			const listens = "0A"
			at, port, _ := strings.Cut(r[1], ":")
			n, err := strconv.ParseUint(port, 16, 16)
			if err != nil {
				t.Fatal(err)
			}
			where := "every address"
			if at == "0100007F" {
				where = "loopback"
			} else if strings.Trim(at, "0") != "" {
				where = at
			}
			if proto[:3] == "udp" || r[3] == listens {
				list = append(list, fmt.Sprintf("%s %d on %s", proto[:3], n, where))
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// TestSockets compares all sockets of a node's processes with a list. docs/agent.md has the same list as a table, so a
// new socket needs a line there and here. Another user must get no answer from the sockets with a path.
func TestSockets(t *testing.T) {
	n := newMachine(t)
	n.source = append(n.source, "--health-address", ":10256", "--metrics-address", "127.0.0.1:10249", "--ingress-http", ":80", "--ingress-https", ":443")
	n.manifest("service.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {type: NodePort, clusterIP: 10.96.0.9, ports: [{port: 80, nodePort: 30080}]}\n")
	n.start()
	n.ready()
	want := []string{
		// A NodePort without a backend has no socket.
		"tcp 10249 on loopback", "tcp 10256 on every address", "tcp 443 on every address", "tcp 80 on every address",
		"udp 51820 on every address", "unix agent.sock", "unix api.sock", "unix keeper.sock",
	}
	n.until("all are there", func() bool { return len(listening(t)) >= len(want) })
	if got := listening(t); !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	// Files in the directories may be read by their user only, or also by the group.
	err := filepath.WalkDir(n.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		others := fs.FileMode(0o027)
		if strings.Contains(path, "/manifests/") {
			others = 0o022 // a node's status file is for the other nodes
		}
		if err == nil && (info.Mode().Perm()&others != 0 || !info.Mode().IsRegular() && info.Mode().Type() != fs.ModeSocket || info.Mode().Type() == fs.ModeSocket && info.Mode().Perm() != 0o600) {
			t.Errorf("%s is %v", d.Name(), info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	// Without the protection of file modes, the server checks the user whom the kernel reports.
	sockets := []string{n.client.Path, n.api.Path, filepath.Join(n.dir, "keeper.sock")}
	for _, path := range append(slices.Clone(sockets), n.dir, filepath.Dir(n.dir)) {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	told, others := strangerSays(t, &syscall.Credential{Uid: 65533, Gid: 65533}, sockets)
	if !others { // without root there is only one user; the tests of package fdpass have more
		told, _ = strangerSays(t, nil, sockets)
	}
	if got := strings.Count(told, "user 65533 may not use"); others && got != len(sockets) || !others && strings.Count(told, "ok") != len(sockets) {
		t.Errorf("another user (%v) is told %q", others, told)
	}
}

// strangerSays makes a process of another user ask at every socket. It returns false if no such process can be
// started.
func strangerSays(t *testing.T, user *syscall.Credential, sockets []string) (told string, started bool) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", sockets...)
	cmd.Env, cmd.Stderr = append(os.Environ(), roleVar+"=stranger"), os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user}
	out, err := cmd.Output()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) {
		return "", false
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(out), true
}

// stranger asks at the sockets, and prints the answers.
func stranger(sockets []string) {
	for _, path := range sockets {
		ctx, cancel := context.WithTimeout(context.Background(), await.Patience)
		var answer json.RawMessage
		// A real client would refuse this directory, since everybody may write it now.
		conn, err := fdpass.Dial(ctx, path)
		if err == nil {
			_, err = conn.Call(ctx, map[string]string{"op": "status"}, &answer, 0, 1, 2)
			conn.Close()
		}
		cancel()
		fmt.Printf("ok %s %v\n", answer, err)
	}
}
