package netstack

import (
	"testing"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
)

// A packet that comes for a pod while the node closes, or afterwards, is not refused: the connection goes on in the
// next agent.
func TestCloseRefusesNothing(t *testing.T) {
	w := newWorld(t)
	segment := netstacktest.Spec{Src: ap("10.244.2.10:1000"), Dst: ap("10.244.1.10:8080"), Proto: packet.TCP, TCPFlags: 0x10, Payload: []byte("data")}
	w.from("node-2", segment)
	w.expect("a", "tcp 10.244.2.10:1000 > 10.244.1.10:8080 A")
	if err := w.path.Close(); err != nil {
		t.Fatal(err)
	}
	w.from("node-2", segment) // synchronous: FromLink has handled the packet when it returns
	select {
	case s := <-w.link.Sent():
		t.Errorf("the other end was sent %s", w.describeSent(s))
	default:
	}
	if got := w.path.Stats().Drops["tap-down"]; got != 1 {
		t.Errorf("%d packets were lost at the attachment, want 1: %v", got, w.path.Stats())
	}
}
