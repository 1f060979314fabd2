package doctor

import (
	"fmt"
	"time"
)

const (
	// clockOff and clockWrong are how far a clock may be off before it is told, and before it is a failure.
	clockOff   = 10 * time.Second
	clockWrong = time.Minute
)

// clock compares ours to those of all who answered.
func (d *doctor) clock() {
	var worst dated
	agrees := "" // somebody else whose clock is ours: the server that was named, which nobody has set together with ours
	for _, one := range d.dates {
		if one.off.Abs() > worst.off.Abs() || worst.who == "" {
			worst = one
		}
		if !one.self && one.off.Abs() <= clockOff {
			agrees = one.who
		}
	}
	status := OK
	switch {
	case worst.who == "":
		d.say("clock", Warning, "Nobody answered whose clock could be compared.", "")
		return
	case worst.off.Abs() > clockWrong:
		status = Failed
	case worst.off.Abs() > clockOff:
		status = Warning
	}
	ours, theirs := "behind", "ahead of"
	if worst.off < 0 {
		ours, theirs = theirs, ours
	}
	switch {
	case status == OK && agrees != "":
		d.say("clock", OK, "This machine's clock agrees with that of "+agrees+".", "")
	case status == OK:
		d.say("clock", OK, "This machine's clock agrees with those of the site; --server compares it to another one's.", "")
	case agrees != "" && worst.self:
		d.say("clock", status, fmt.Sprintf("The clock of %s is %s %s this machine's, which agrees with that of %s.", worst.who, worst.off.Abs(), theirs, agrees),
			"Set the clock there by NTP: what checks signatures and certificates goes by it.")
	case worst.self:
		d.say("clock", status, fmt.Sprintf("This machine's clock is %s %s that of %s, which is part of the site.", worst.off.Abs(), ours, worst.who),
			"Set both by NTP. freshen doctor --server matrix.org tells which of them is wrong.")
	default:
		d.say("clock", status, fmt.Sprintf("This machine's clock is %s %s that of %s.", worst.off.Abs(), ours, worst.who),
			"Set this machine's clock by NTP (timedatectl set-ntp true). If it is right, that server's is wrong: try another with --server.")
	}
}
