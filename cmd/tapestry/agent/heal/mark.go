package heal

import (
	"fmt"
	"os"
	"strings"
)

// mark remembers on disk that the node was whole in a pod of the agent. Init steps that never were of use are not run
// again: the agent would have one pod after the other evicted.
type mark struct {
	path, uid string
	whole     bool // in the pod with uid
}

// read finds out what an earlier agent of the same pod has noted.
func (m *mark) read() {
	b, err := os.ReadFile(m.path)
	m.whole = err == nil && m.uid != "" && strings.TrimSpace(string(b)) == m.uid
}

// set notes that the node is whole.
func (m *mark) set() error {
	if m.whole || m.uid == "" {
		return nil
	}
	if err := os.WriteFile(m.path, []byte(m.uid+"\n"), 0o600); err != nil { // half of a UID is no pod's
		return fmt.Errorf("note that the node is whole: %w", err)
	}
	m.whole = true
	return nil
}
