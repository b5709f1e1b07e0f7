package inspect

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/google/nftables"
)

// Rulesets returns the name of every packet filter table in the calling thread's network namespace, of nftables and of
// the older iptables. Tapestry promises that there is none.
func Rulesets() ([]string, error) {
	var out []string
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("ask nftables: %w", err)
	}
	tables, err := conn.ListTables()
	if err != nil {
		return nil, fmt.Errorf("list nftables tables: %w", err)
	}
	for _, t := range tables {
		out = append(out, fmt.Sprintf("nft %d %s", t.Family, t.Name))
	}
	for _, file := range []string{"/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names", "/proc/thread-self/net/arp_tables_names"} {
		names, err := lines(file)
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			out = append(out, "iptables "+n)
		}
	}
	return out, nil
}

func lines(file string) ([]string, error) {
	f, err := os.Open(file)
	// The kernel may lack such tables. The namespace may also be older than the mapping of its user namespace: then the
	// file belongs to nobody. That is so for the lab's outermost namespace without root; as root the file is read.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []string
	s := bufio.NewScanner(f)
	for s.Scan() {
		if l := strings.TrimSpace(s.Text()); l != "" {
			out = append(out, l)
		}
	}
	return out, s.Err()
}
