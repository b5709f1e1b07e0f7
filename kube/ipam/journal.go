package ipam

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// header is the first line of a journal, with the version of the format.
const header = "tapestry addresses 1\n"

// spare is by how many the out-of-date lines may exceed the others before the file is written anew.
const spare = 128

// maxLine is the longest line in bytes. It limits the memory that a damaged file can take.
const maxLine = 64 << 10

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// record is one line: a Lease, or, when ContainerID is empty, the addresses that were assigned last. Without that
// line a file that was written anew would not tell them.
type record struct {
	Lease
	Last []netip.Addr `json:"last,omitempty"`
}

// journal is the file. It is not safe for concurrent use.
type journal struct {
	path string
	file *os.File // nil until something is written
	size int64    // of the complete lines, with the header
	// lines counts the lines of the file.
	lines int
	// stale is set when the file lacks something, or cannot be appended to.
	stale bool
}

// load reads the file. It leaves out what is damaged, and says so; the next write removes it.
func (j *journal) load() (list []record, damage string, err error) {
	b, err := os.ReadFile(j.path)
	if errors.Is(err, fs.ErrNotExist) {
		j.stale = true // so that a rewrite makes the file, with its header and its directory entry on the disk
		return nil, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	text, ok := bytes.CutPrefix(b, []byte(header))
	if !ok {
		if first, _, _ := bytes.Cut(b, []byte("\n")); bytes.HasPrefix(first, []byte("tapestry addresses ")) && len(b) > len(first) {
			return nil, "", fmt.Errorf("it begins with %q, and this agent reads %q: a newer agent wrote it; start that one, or move the file away", first, strings.TrimSpace(header))
		}
	}
	var bad int
	torn := false
	for len(text) > 0 {
		line, rest, whole := bytes.Cut(text, []byte("\n"))
		text = rest
		x, ok := parse(line)
		switch {
		case whole && ok:
			list = append(list, x)
			j.lines++
		case whole || len(text) > 0:
			bad++
		default:
			torn = true
		}
	}
	switch {
	case len(b) == 0:
		damage = "the journal was empty"
	case !ok && len(list) == 0:
		damage = "the journal was not one"
	case bad > 0:
		damage = fmt.Sprintf("%d damaged lines of the journal were left out", bad)
	case torn:
		damage = "the last line of the journal was not written whole and left out"
	}
	if damage != "" {
		damage += ": " + j.path
	}
	j.size, j.stale = int64(len(b)), damage != "" || !ok
	return list, damage, nil
}

func parse(line []byte) (x record, ok bool) {
	sum, text, found := bytes.Cut(line, []byte(" "))
	if !found || len(line) > maxLine {
		return x, false
	}
	want, err := strconv.ParseUint(string(sum), 16, 32)
	if err != nil || uint32(want) != crc32.Checksum(text, castagnoli) {
		return x, false
	}
	return x, json.Unmarshal(text, &x) == nil
}

func format(list []record) ([]byte, error) {
	var b bytes.Buffer
	for i := range list {
		text, err := json.Marshal(&list[i])
		if err != nil {
			return nil, err
		}
		if len(text) > maxLine-16 {
			return nil, fmt.Errorf("%d bytes are too much for one line", len(text))
		}
		fmt.Fprintf(&b, "%08x %s\n", crc32.Checksum(text, castagnoli), text)
	}
	return b.Bytes(), nil
}

// due reports whether the file should be written anew, given the number of lines that are up to date.
func (j *journal) due(live int) bool { return j.stale || j.lines > 2*live+spare }

// append adds lines, all or none. With sync they are on the disk when it returns.
func (j *journal) append(list []record, sync bool) error {
	b, err := format(list)
	if err != nil {
		return err
	}
	if j.file == nil {
		if j.file, err = os.OpenFile(j.path, os.O_WRONLY, 0); err != nil {
			j.stale = true // the next write makes the file
			return err
		}
	}
	_, err = j.file.WriteAt(b, j.size)
	if err == nil && sync {
		err = j.file.Sync()
	}
	if err != nil {
		// After a failed write, some of the lines may be in the file; after a failed sync, none or all of them may
		// reach the disk. They are taken back, and nothing is appended to them.
		j.stale = true
		return errors.Join(err, j.file.Truncate(j.size))
	}
	j.size += int64(len(b))
	j.lines += len(list)
	return nil
}

// rewrite replaces the file by one with these lines, which is on the disk when rewrite returns. On an error the old
// file stays.
func (j *journal) rewrite(list []record) error {
	b, err := format(list)
	if err != nil {
		return err
	}
	dir := filepath.Dir(j.path)
	if old, err := filepath.Glob(filepath.Join(dir, filepath.Base(j.path)+".new-*")); err == nil {
		for _, name := range old { // left by an interrupted rewrite
			_ = os.Remove(name)
		}
	}
	f, err := os.CreateTemp(dir, filepath.Base(j.path)+".new-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.WriteString(header)
	if err == nil {
		_, err = f.Write(b)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(f.Name(), j.path)
	}
	if err != nil {
		return errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	_ = j.close()
	j.file, j.size, j.lines = f, int64(len(header)+len(b)), len(list)
	// Without this sync the new file is in place, but a power failure may lose its name, and with it these lines.
	err = syncDir(dir)
	j.stale = err != nil
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (j *journal) close() error {
	if j.file == nil {
		return nil
	}
	err := j.file.Close()
	j.file = nil
	return err
}

var _ io.Closer = (*Leases)(nil)
