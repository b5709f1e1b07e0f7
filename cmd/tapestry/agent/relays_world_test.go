package agent

import (
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"tapestry.dev/tapestry/test/await"
)

// An agent that is told to end has the keeper hold what it began to relay a moment before: the far end goes on seeing
// the pod at the same port.
func TestYoungMappingsOutliveAgent(t *testing.T) {
	n := newMachine(t)
	n.start()
	n.ready()
	s := n.sandbox("c1", "web")
	s.works("ADD")
	far, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(172, 31, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	var pod net.Conn
	if err := s.ns.Do(func() (err error) {
		pod, err = net.Dial("udp4", far.LocalAddr().String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer pod.Close()
	seen := func() (at netip.AddrPort) {
		t.Helper()
		n.until("a datagram arrives", func() bool {
			if _, err := pod.Write([]byte("x")); err != nil {
				return false // an error of a datagram before
			}
			_ = far.SetReadDeadline(time.Now().Add(await.Patience / 10))
			_, at, err = far.ReadFromUDPAddrPort(make([]byte, 1))
			return err == nil
		})
		return at
	}
	before := seen()
	if err := n.agent.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	n.ended()
	n.start()
	n.ready()
	if after := seen(); after != before {
		t.Errorf("the pod was seen at %s, and is seen at %s", before, after)
	}
}
