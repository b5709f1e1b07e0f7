package tcprelay

import (
	"testing"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

func TestFarewell(t *testing.T) {
	for name, c := range map[string]struct {
		was    state
		why    uint32
		failed error
		want   lastWord
		kind   packet.ICMPError
	}{
		"a clean end":                    {open, 0, nil, nothing, 0},
		"the pod reset it":               {open, podGone, nil, nothing, 0},
		"a router says why":              {connecting, hostGone, saidBy{unix.EHOSTUNREACH, packet.TimeExceeded, packet.Addr{1}}, anError, packet.TimeExceeded},
		"the pod reset it first":         {open, podGone | hostGone, nil, nothing, 0},
		"the host's side reset it":       {open, hostGone, nil, aReset, 0},
		"we end it":                      {open, aborted, nil, aReset, 0},
		"no answer to our SYN":           {greeting, aborted, nil, aReset, 0},
		"no answer to our SYN-ACK":       {answering, aborted, nil, aReset, 0},
		"refused":                        {connecting, hostGone, unix.ECONNREFUSED, aReset, 0},
		"no way to the network":          {connecting, hostGone, unix.ENETUNREACH, anError, packet.NetUnreachable},
		"nobody has the address":         {connecting, hostGone, unix.EHOSTUNREACH, anError, packet.HostUnreachable},
		"prohibited":                     {connecting, hostGone, unix.EACCES, anError, packet.AdminProhibited},
		"the kernel gives up":            {connecting, hostGone, unix.ETIMEDOUT, nothing, 0},
		"no socket to be had":            {connecting, hostGone, unix.EMFILE, nothing, 0},
		"we give up":                     {connecting, aborted, nil, nothing, 0},
		"the pod gave up while it asked": {connecting, podGone, nil, nothing, 0},
	} {
		if last, kind := farewell(c.was, c.why, c.failed); last != c.want || kind != c.kind {
			t.Errorf("%s: %d, ICMP %d; want %d, %d", name, last, kind, c.want, c.kind)
		}
	}
}
