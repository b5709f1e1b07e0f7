package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// stream is a connection from a pod to an iperf server. It sends 2.5 MB a second: every segment matters, and not their
// number.
type stream struct {
	to   string
	conn *net.TCPConn
	done chan error // its only value tells why it ended
}

// The server's port. It reads all that it is sent.
const iperfPort = 5001

// iperf starts an iperf server in each of these pods.
func iperf(t *testing.T, pods []*corev1.Pod) {
	t.Helper()
	for _, p := range pods {
		if _, err := inPod(t.Context(), p, "sh", "-c", "iperf --server --daemon >/dev/null 2>&1"); err != nil {
			t.Fatal(err)
		}
	}
}

// newStream begins a stream, which ends with the test.
func newStream(t *testing.T, from *corev1.Pod, addr string) *stream {
	t.Helper()
	var c net.Conn
	pid := processIn(t, from)
	eventually(t, soon, "a connection to "+addr, func() (err error) {
		c, err = dialIn(pid, net.JoinHostPort(addr, fmt.Sprint(iperfPort)))
		return err
	})
	s := &stream{to: addr, conn: c.(*net.TCPConn), done: make(chan error, 1)}
	t.Cleanup(func() { s.conn.Close() })
	go func() {
		block := make([]byte, 64<<10)
		for {
			if _, err := s.conn.Write(block); err != nil {
				s.done <- err
				return
			}
			time.Sleep(25 * time.Millisecond)
		}
	}()
	return s
}

// goesOn waits until the server has acknowledged more than it had, and fails when the connection has ended. A client's
// TCP tries again ever more rarely while nothing is forwarded, so that a pause may be twice as long as its cause.
func (s *stream) goesOn(t *testing.T) {
	t.Helper()
	const more = 256 << 10
	before, err := s.acknowledged()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	eventually(t, soon, "more bytes to "+s.to, func() error {
		select {
		case err := <-s.done:
			s.done <- err
			t.Fatalf("the connection to %s ended: %v", s.to, err)
		default:
		}
		now, err := s.acknowledged()
		if err == nil && now < before+more {
			err = fmt.Errorf("%d bytes are acknowledged, and %d were before", now, before)
		}
		return err
	})
	t.Logf("the connection to %s goes on after %v", s.to, time.Since(began).Round(time.Millisecond))
}

// acknowledged returns how many bytes the server has acknowledged.
func (s *stream) acknowledged() (n uint64, err error) {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	return n, errors.Join(raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n = info.Bytes_acked
		}
	}), os.NewSyscallError("getsockopt", err))
}
