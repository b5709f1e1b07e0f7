package fdpass

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The socket has its mode from its first moment on, so nobody can connect before the mode is set.
func TestModeFromTheFirstMomentOn(t *testing.T) {
	defer unix.Umask(unix.Umask(0))
	path := filepath.Join(t.TempDir(), "s")
	ln, err := bind(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

// The umask does not keep out the users who are to connect.
func TestListenModes(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077))
	for _, mode := range []fs.FileMode{0o600, 0o660, 0o666} {
		path := filepath.Join(t.TempDir(), "s")
		ln, err := Listen(path, mode)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%v, %v, want %v", info, err, mode)
		}
		ln.Close()
	}
}

// dead makes a socket whose process has died.
func dead(t *testing.T, path string) {
	t.Helper()
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
}

// Only a dead socket is replaced. connect(2) fails for a file in the same way as for a dead socket.
func TestListenReplacesNothingElse(t *testing.T) {
	write := func(t *testing.T, path string) {
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		make func(t *testing.T, path string)
		want string
	}{
		"dead socket": {dead, ""},
		"file":        {write, "not a socket"},
		"directory":   {func(t *testing.T, path string) { os.Mkdir(path, 0o700) }, "not a socket"},
		"fifo":        {func(t *testing.T, path string) { unix.Mkfifo(path, 0o600) }, "not a socket"},
		"link to a file": {func(t *testing.T, path string) {
			write(t, path+".file")
			os.Symlink(path+".file", path)
		}, "not a socket"},
		"link to a dead socket": {func(t *testing.T, path string) {
			dead(t, path+".dead")
			os.Symlink(path+".dead", path)
		}, "not a socket"},
		"link to nothing": {func(t *testing.T, path string) { os.Symlink(path+".none", path) }, "not a socket"},
		"socket that is listened on": {func(t *testing.T, path string) {
			ln, err := Listen(path, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { ln.Close() })
		}, "another process listens there"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			c.make(t, path)
			before, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			ln, err := Listen(path, 0o600)
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				ln.Close()
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
				t.Errorf("what was there is %v, %v", after, err)
			}
		})
	}
}

// Somebody who may write the directory puts a link in place of the socket: its target must not get the rights that were
// meant for the socket.
func TestWidenFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	file, path := filepath.Join(dir, "file"), filepath.Join(dir, "s")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, swap := range map[string]func() error{
		"symbolic link": func() error { return os.Symlink(file, path) },
		"hard link":     func() error { return os.Link(file, path) },
	} {
		if err := swap(); err != nil {
			t.Fatal(err)
		}
		if err := widen(path, 0o666); err == nil || !strings.Contains(err.Error(), "has replaced the socket") {
			t.Errorf("%s: got %v", name, err)
		}
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: the file is %v, %v", name, info.Mode(), err)
		}
		os.Remove(path)
	}
}

func TestBelieve(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	own := Cred{UID: uint32(os.Geteuid())}
	other := Cred{UID: own.UID + 7}
	for _, c := range []struct {
		mode fs.FileMode
		peer Cred
		want bool
	}{
		{0o700, other, true}, {0o770, other, true}, {0o755, other, true},
		{0o777, other, false}, {0o777 | fs.ModeSticky, other, false}, {0o733, other, false},
		{0o777, own, true}, {0o777, Cred{UID: 0}, true},
	} {
		if err := os.Chmod(dir, c.mode); err != nil {
			t.Fatal(err)
		}
		if err := believe(path, c.peer); (err == nil) != c.want {
			t.Errorf("%v, user %d: %v, want %v", c.mode, c.peer.UID, err, c.want)
		}
	}
}

func TestUnmapped(t *testing.T) {
	for _, c := range []struct {
		table, number string
		want          users
	}{
		{"         0          0 4294967295\n", "65534\n", users{65534, false}},
		{"         0       1000          1\n", "65534\n", users{65534, true}},
		{"         0       1000          1\n         1     100000      65536\n", "65000\n", users{65000, true}},
		{"         0          0 2147483647\n2147483647 2147483647 2147483648\n", "65534\n", users{65534, false}},
		{"", "", users{65534, true}},
	} {
		if got := unmappedOf(c.table, c.number); got != c.want {
			t.Errorf("%q, %q: %v, want %v", c.table, c.number, got, c.want)
		}
	}
}
