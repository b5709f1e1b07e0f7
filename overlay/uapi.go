package overlay

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// delta returns the steps from one set of peers to another, in WireGuard's configuration protocol. A prefix is taken
// from its old peer before its new peer gets it. Peers that are equal are not mentioned.
func delta(old, want map[PublicKey]Peer) string {
	var away, to strings.Builder
	for _, key := range sortedKeys(old) {
		if _, kept := want[key]; !kept {
			fmt.Fprintf(&away, "public_key=%x\nremove=true\n", key[:])
		}
	}
	for _, key := range sortedKeys(want) {
		now := want[key]
		was, known := old[key]
		section := fmt.Sprintf("public_key=%x\n", key[:])
		head := section
		for _, p := range was.Prefixes {
			if !slices.Contains(now.Prefixes, p) {
				fmt.Fprintf(&away, "%supdate_only=true\nallowed_ip=-%s\n", head, p)
			}
		}
		var lines strings.Builder
		if now.Endpoint != was.Endpoint && now.Endpoint.IsValid() {
			fmt.Fprintf(&lines, "endpoint=%s\n", now.Endpoint)
		}
		for _, p := range now.Prefixes {
			if !known || !slices.Contains(was.Prefixes, p) {
				fmt.Fprintf(&lines, "allowed_ip=%s\n", p)
			}
		}
		if !known || lines.Len() > 0 {
			to.WriteString(section + lines.String())
		}
	}
	return away.String() + to.String()
}

func sortedKeys(m map[PublicKey]Peer) []PublicKey {
	return slices.SortedFunc(maps.Keys(m), func(a, b PublicKey) int { return bytes.Compare(a[:], b[:]) })
}

// session is the device's state of one peer.
type session struct {
	endpoint  netip.AddrPort
	handshake time.Time // zero: never
	rx, tx    uint64
}

// sessions asks the device for the state of all peers.
func (m *Mesh) sessions() (map[PublicKey]session, error) {
	var buf bytes.Buffer
	if err := m.dev.IpcGetOperation(&buf); err != nil {
		return nil, err
	}
	return parseSessions(buf.Bytes()), nil
}

// parseSessions reads the device's answer. It skips lines that it does not need, the private key among them.
func parseSessions(text []byte) map[PublicKey]session {
	all := make(map[PublicKey]session)
	var key PublicKey
	var cur session
	var sec, nsec int64
	seen := false
	flush := func() {
		if sec != 0 || nsec != 0 {
			cur.handshake = time.Unix(sec, nsec)
		}
		if seen {
			all[key] = cur
		}
	}
	for scan := bufio.NewScanner(bytes.NewReader(text)); scan.Scan(); {
		name, value, _ := strings.Cut(scan.Text(), "=")
		switch name {
		case "public_key":
			flush()
			cur, sec, nsec, seen = session{}, 0, 0, true
			hex.Decode(key[:], []byte(value))
		case "endpoint":
			cur.endpoint, _ = netip.ParseAddrPort(value)
		case "last_handshake_time_sec":
			sec, _ = strconv.ParseInt(value, 10, 64)
		case "last_handshake_time_nsec":
			nsec, _ = strconv.ParseInt(value, 10, 64)
		case "rx_bytes":
			cur.rx, _ = strconv.ParseUint(value, 10, 64)
		case "tx_bytes":
			cur.tx, _ = strconv.ParseUint(value, 10, 64)
		}
	}
	flush()
	return all
}
