package keeper

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/netstack/keeper"
)

// startKeeper runs the command until the returned function is called. The function returns the command's error.
func startKeeper(t *testing.T, path string, uids ...uint32) func() error {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- runKeeper(ctx, path, uids) }()
	stop := func() error { cancel(); return <-done }
	for {
		if _, err := os.Stat(path); err == nil {
			if c, err := keeper.Dial(t.Context(), path); err == nil {
				c.Close()
				return stop
			}
		}
		select {
		case err := <-done:
			t.Fatalf("the keeper ended: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
}

func TestKeeper(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keeper.sock")
	stop := startKeeper(t, path)
	c, err := keeper.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Put("k", nil, os.Stderr); err != nil {
		t.Fatal(err)
	}
	want := "another keeper serves " + path + ": stop it first, or give this one another --socket"
	if err := runKeeper(t.Context(), path, nil); err == nil || err.Error() != want {
		t.Errorf("a second keeper: %v, want %s", err, want)
	}
	if _, err := c.Get("k"); err != nil {
		t.Errorf("the first keeper was disturbed: %v", err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if err := startKeeper(t, path)(); err != nil { // when the first has ended
		t.Error(err)
	}
}

// TestKeeperStaleSocket checks that a keeper can replace the socket that a killed keeper left behind.
func TestKeeperStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keeper.sock")
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	if err := startKeeper(t, path)(); err != nil {
		t.Error(err)
	}
}

// TestKeeperUsers checks that a user who is not listed is refused, even if the user may open the socket.
func TestKeeperUsers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keeper.sock")
	stop := startKeeper(t, path, uint32(os.Geteuid())+1)
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("the socket's mode is %v, %v", st.Mode(), err)
	}
	c, err := keeper.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.List(); err == nil || !strings.Contains(err.Error(), "may not use") {
		t.Errorf("got %v", err)
	}
	c.Close()
	if err := stop(); err != nil {
		t.Error(err)
	}
	app := &cli.App{Commands: []*cli.Command{Command()}}
	if err := app.Run([]string{"tapestry", "keeper", "--socket", path, "--uid", "-3"}); err == nil || !strings.Contains(err.Error(), "--uid -3") {
		t.Errorf("a negative uid: %v", err)
	}
}
