package baseline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/bench"
	"tapestry.dev/tapestry/bench/process"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
)

const nullLoopCommand = "null-loop"

// NullLoop returns the least that a userspace network has to do: a process copies superframes between two TAPs and does
// nothing else. Comparing with NullLoop shows what Tapestry adds on one node.
func NullLoop(spawn process.Spawn) (bench.Topology, error) {
	return build("null-loop", func(p *pair) error {
		var files []*os.File
		defer func() {
			for _, f := range files {
				f.Close() // the process has its own
			}
		}()
		for _, end := range []struct {
			ns   *tap.Namespace
			addr netip.Prefix
		}{{p.client, clientAddr}, {p.server, serverAddr}} {
			f, err := tap.Create(end.ns, tap.Config{Name: "eth0", MTU: bench.DefaultMTU, Addrs: []netip.Prefix{end.addr}})
			if err != nil {
				return err
			}
			files = append(files, f)
		}
		cmd := spawn(nullLoopCommand)
		cmd.ExtraFiles = files
		proc, _, err := process.Start(nil, cmd)
		if err != nil {
			return err
		}
		p.closers = append(p.closers, proc)
		return nil
	})
}

// nullLoop is the main function of that process. Descriptors 3 and 4 are the TAPs.
func nullLoop(ctx context.Context, stdin io.Reader, stdout io.Writer) error {
	const a, b = 3, 4
	for _, fd := range []int{a, b} {
		if err := unix.SetNonblock(fd, false); err != nil {
			return fmt.Errorf("%s: expected a TAP as descriptor %d: %w", nullLoopCommand, fd, err)
		}
	}
	ctx, cancel := process.UntilEOF(ctx, stdin)
	defer cancel()
	failed := make(chan error, 2)
	go func() { failed <- copyFrames(b, a) }()
	go func() { failed <- copyFrames(a, b) }()
	fmt.Fprintln(stdout, "ready")
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}

// copyFrames blocks in read(2) on a thread of its own. This is the shortest way from one TAP to the other, since it
// does not use the runtime's poller.
func copyFrames(to, from int) error {
	runtime.LockOSThread()
	buf := make([]byte, packet.MaxFrame)
	for {
		n, err := unix.Read(from, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: read: %w", nullLoopCommand, err)
		}
		unix.Write(to, buf[:n]) // a frame that the kernel refuses is lost, as on any wire
	}
}
