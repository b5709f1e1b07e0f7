package nodeinit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/hosttap"
)

// rememberedFile is the file of the state directory in which the step keeps what it learned of the API server last.
// What the agent saves there is the agent's alone.
const rememberedFile = "host-tap.json"

// mostRemembered is how many bytes the file may have.
const mostRemembered = 4 << 10

// remembered is what the host TAP of a node follows from.
type remembered struct {
	Node     string         `json:"node"`
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
	MTU      int            `json:"mtu"` // of pods, in bytes
}

// remember keeps host for a start while no API server answers.
func (s *step) remember(host hosttap.Config) error {
	if s.state == "" {
		return nil
	}
	text, err := json.Marshal(remembered{s.node, host.PodCIDRs, host.MTU})
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(s.state, "."+rememberedFile+".*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(s.state, rememberedFile))
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// recall returns what was remembered, or false when there is nothing of use. The agent's group may write the directory,
// so that a file which is not this user's own is not believed.
func (s *step) recall() (r remembered, ok bool) {
	if s.state == "" {
		return r, false
	}
	path := filepath.Join(s.state, rememberedFile)
	r, err := readRemembered(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return r, false
	case err == nil && r.Node != s.node:
		err = fmt.Errorf("it is about node %q", r.Node)
	case err == nil && (len(r.PodCIDRs) == 0 || r.MTU <= 0):
		err = errors.New("it has no ranges of pods, or no MTU")
	case err == nil:
		err = s.inside(r.PodCIDRs)
	}
	if err != nil {
		s.log.Warn("what the API server said last is left out", "file", path, "err", err)
		return r, false
	}
	return r, true
}

func readRemembered(path string) (r remembered, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return r, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return r, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 || st.Size > mostRemembered {
		return r, errors.New("somebody else may have written it")
	}
	text := make([]byte, st.Size)
	if _, err := f.ReadAt(text, 0); err != nil {
		return r, err
	}
	return r, json.Unmarshal(text, &r)
}
