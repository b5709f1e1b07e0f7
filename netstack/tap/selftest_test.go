package tap

import (
	"testing"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

// TestTry simulates kernels that refuse some superframes.
func TestTry(t *testing.T) {
	all := func([]byte) unix.Errno { return 0 }
	refuse := func(errno unix.Errno, gso ...uint8) func([]byte) unix.Errno {
		return func(frame []byte) unix.Errno {
			for _, g := range gso {
				if frame[1] == g {
					return errno
				}
			}
			return 0
		}
	}
	for _, tc := range []struct {
		name     string
		accepted Offloads
		write    func([]byte) unix.Errno
		want     Offloads
		refused  string
	}{
		{"good", AllOffloads, all, AllOffloads, ""},
		{"old kernel", Csum | TSO4 | TSO6, all, Csum | TSO4 | TSO6, ""},
		{"no uso", AllOffloads, refuse(unix.EINVAL, packet.GSOUDPL4), Csum | TSO4 | TSO6, "uso: write: invalid argument; "},
		{"no tso", AllOffloads, refuse(unix.EINVAL, packet.GSOTCPv4, packet.GSOTCPv6), Csum | USO,
			"tso4: write: invalid argument; tso6: write: invalid argument; "},
		{"no partial checksums", AllOffloads, refuse(unix.EPERM, packet.GSONone), 0,
			"csum,tso4,tso6,uso: write: operation not permitted; "},
		{"link down", AllOffloads, refuse(unix.EIO, 0, 1, 4, 5), AllOffloads, ""},
		{"not asked for", 0, refuse(unix.EINVAL, 0, 1, 4, 5), 0, ""},
	} {
		got, refused := try(tc.accepted, tc.write)
		if got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
		said := ""
		for _, r := range refused {
			said += r.Offload.String() + ": " + r.Err.Error() + "; "
		}
		if said != tc.refused {
			t.Errorf("%s: refused %q, want %q", tc.name, said, tc.refused)
		}
	}
}

// Package packet accepts every probe as a valid frame.
func TestProbes(t *testing.T) {
	for _, p := range probes {
		var v packet.Packet
		frame := p.frame()
		if fault := v.ParseFrame(frame); fault != packet.Good {
			t.Errorf("%+v: fault %v", p, fault)
		}
	}
}
