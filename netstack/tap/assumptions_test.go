package tap_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/await"
)

// These tests prove what this package assumes about the kernel (drivers/net/tun.c).

// The namespace of a TAP is that of the thread that opened /dev/net/tun, wherever TUNSETIFF is called.
func TestAssumeNamespaceOfOpen(t *testing.T) {
	ns := newNamespace(t)
	var fd int
	err := ns.Do(func() (err error) {
		fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("opened0")
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		t.Fatal(err)
	}
	if !contains(linkNames(t, ns), "opened0") {
		t.Error("the device is not where /dev/net/tun was opened")
	}
	if _, err := net.InterfaceByName("opened0"); err == nil {
		t.Error("the device is where TUNSETIFF was called")
	}
}

// A second attachment is refused while a queue is attached, so it cannot bring in IFF_VNET_HDR.
func TestAssumeOneQueue(t *testing.T) {
	first := attachRaw(t, "single0", unix.IFF_TAP|unix.IFF_NO_PI)
	if _, err := tap.Open("single0", nil); !errors.Is(err, unix.EBUSY) {
		t.Errorf("attached twice: %v", err)
	}
	err := control(first, func(fd int) error { return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1) })
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	f, err := tap.Open("single0", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := tap.Check(f); err != nil {
		t.Errorf("attached again: %v", err)
	}
	if err := tap.DeleteLink(nil, "single0"); err != nil {
		t.Error(err)
	}
}

func control(f *os.File, g func(fd int) error) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := rc.Control(func(fd uintptr) { err = g(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// holderVar is set in the environment of the other process, which holds a descriptor.
const holderVar = "TAPESTRY_TEST_HOLDER"

// A process that receives a descriptor needs no capability to use it. The device stays when its first holder is killed,
// and frames sent meanwhile wait in the queue.
func TestAssumeHolder(t *testing.T) {
	ns, f := newPod(t, podA, macA)
	first := hold(t, f)
	f.Close()
	// Only the holder has the descriptor now. What the pod sends waits in the queue.
	c := listenUDP(t, ns, podA[0])
	const frames = 100
	for i := range frames {
		if _, err := c.WriteToUDPAddrPort([]byte{byte(i)}, netip.AddrPortFrom(podB[0], 9)); err != nil {
			t.Fatal(err)
		}
	}
	dup := first.receive(t)
	first.kill(t)
	if !contains(linkNames(t, ns), "eth0") {
		t.Fatal("the device went with its killed holder")
	}
	d := newDevice(t, dup, tap.Options{})
	got := make(chan byte, frames)
	go d.Run(func(b []byte) []byte {
		if len(b) == packet.HeadLen+29 && b[packet.HeadLen]>>4 == 4 {
			got <- b[len(b)-1]
		}
		return b
	}, nil)

	for i := range frames {
		select {
		case x := <-got:
			if x != byte(i) {
				t.Fatalf("frame %d arrived as number %d", x, i)
			}
		case <-time.After(await.Patience):
			t.Fatalf("only %d frames waited", i)
		}
	}
}

type holder struct {
	cmd  *exec.Cmd
	conn *net.UnixConn
}

// hold passes f to a new process without capabilities, which checks it and passes it back on demand.
func hold(t *testing.T, f *os.File) *holder {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "theirs")
	defer theirs.Close()
	cmd := other("TestHolderProcess", holderVar+"=1")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ours := os.NewFile(uintptr(fds[0]), "ours")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	h := &holder{cmd, conn.(*net.UnixConn)}
	t.Cleanup(func() { h.kill(t) })
	sendFile(t, h.conn, f)
	return h
}

func (h *holder) receive(t *testing.T) *os.File {
	t.Helper()
	return receiveFile(t, h.conn)
}

func (h *holder) kill(t *testing.T) {
	t.Helper()
	if h.cmd.ProcessState != nil {
		return
	}
	h.conn.Close()
	_ = h.cmd.Process.Kill()
	_ = h.cmd.Wait()
}

// TestHolderProcess is the other process of TestAssumeHolder. Run on its own, it starts that process and shows that its
// checks pass without a capability.
func TestHolderProcess(t *testing.T) {
	if os.Getenv(holderVar) == "" {
		_, f := newPod(t, podA, macA)
		h := hold(t, f)
		h.receive(t).Close()
		return
	}
	if _, err := tap.Create(nil, tap.Config{Name: "forbidden", Owner: -1}); !errors.Is(err, unix.EPERM) {
		t.Fatalf("there is a capability: %v", err)
	}
	conn, err := net.FileConn(os.NewFile(3, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	f := receiveFile(t, conn.(*net.UnixConn))
	if _, err := tap.SelfTest(f, tap.AllOffloads); err != nil {
		t.Fatalf("without capabilities: %v", err)
	}
	sendFile(t, conn.(*net.UnixConn), f)
	select {} // until killed
}

func sendFile(t *testing.T, c *net.UnixConn, f *os.File) {
	t.Helper()
	err := control(f, func(fd int) error {
		_, _, err := c.WriteMsgUnix([]byte{0}, unix.UnixRights(fd), nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func receiveFile(t *testing.T, c *net.UnixConn) *os.File {
	t.Helper()
	b, oob := make([]byte, 1), make([]byte, 64)
	_ = c.SetReadDeadline(time.Now().Add(await.Patience))
	_, n, _, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		t.Fatal(err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		t.Fatalf("%d control messages, %v", len(msgs), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), "received")
}

// attachVar names the device that another process is to attach to.
const attachVar = "TAPESTRY_TEST_ATTACH"

// The owner of a persistent device attaches without a capability, and so does anybody if no owner is set. Another
// user's device is refused, and an owner that the user namespace does not map cannot be set.
func TestAssumeOwner(t *testing.T) {
	const stranger = 1
	for _, tc := range []struct {
		owner   int
		refused bool
	}{{os.Getuid(), false}, {-1, false}, {stranger, true}} {
		f, err := tap.Create(nil, tap.Config{Name: "owned0", Owner: tc.owner, Persist: true})
		if tc.owner == stranger && errors.Is(err, unix.EINVAL) {
			continue // the test runs as root of an ordinary user's namespace
		}
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		cmd := other("TestAttachProcess", attachVar+"=owned0")
		out, err := cmd.CombinedOutput()
		if refused := err != nil; refused != tc.refused {
			t.Errorf("owner %d: %v: %s", tc.owner, err, out)
		}
		if tc.refused && !strings.Contains(string(out), "operation not permitted") {
			t.Errorf("owner %d: %s", tc.owner, out)
		}
		if err := tap.DeleteLink(nil, "owned0"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAttachProcess is the other process of TestAssumeOwner. Run on its own, it attaches to a device that it has made.
func TestAttachProcess(t *testing.T) {
	name := os.Getenv(attachVar)
	if name == "" {
		name = "attach0"
		f, err := tap.Create(nil, tap.Config{Name: name, Owner: -1, Persist: true})
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		defer tap.DeleteLink(nil, name)
	}
	f, err := tap.Open(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := tap.Check(f); err != nil {
		t.Error(err)
	}
}

// other prepares a process that runs one test in a child user namespace. There it has the same user but no capability
// over any namespace of the parent.
func other(test, env string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+test+"$")
	cmd.Env = append(os.Environ(), env, "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	return cmd
}
