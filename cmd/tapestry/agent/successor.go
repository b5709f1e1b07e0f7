package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// successorFile, in the state directory, is locked (flock(2)) by agents that wait to take over the node. Kubernetes
// asks both agents of a node at one address whether they are ready, so the one that has the node answers for the next
// one. While somebody waits it does not count what only its own end puts right, as a step that has to run again, or has
// no part in, as a pod that has to be made anew: the update would never come to this node.
const successorFile = "successor.lock"

// queue makes the agent that has the node know that this one waits, until leave is called.
func (c *agentConfig) queue() (leave func(), err error) {
	f, err := os.OpenFile(filepath.Join(c.state, successorFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("wait for the node: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("wait for the node: lock %s: %w", f.Name(), err)
	}
	return func() { _ = f.Close() }, nil
}

// awaited reports whether an agent waits to take over the node.
func (c *agentConfig) awaited() bool {
	f, err := os.Open(filepath.Join(c.state, successorFile))
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
}
